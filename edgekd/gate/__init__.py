"""Which engine is deployed, and whether it keeps the budget: pure functions on measured facts, no I/O, no torch."""
