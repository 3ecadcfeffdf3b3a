"""Structured pruning: which channels go together, which ones matter least, and how many go for the compute asked."""
