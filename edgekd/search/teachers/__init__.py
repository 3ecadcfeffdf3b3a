"""Which teacher for a student: a shortlist by size, advice from short pilots, and a step between when all are far."""
