"""What outputs mean: metrics, their intervals and the supervised loss. Everything else is task-agnostic."""
