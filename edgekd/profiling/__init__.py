"""Latency: measured interleaved on the device at hand, or predicted by a fitted model, and never confused."""
