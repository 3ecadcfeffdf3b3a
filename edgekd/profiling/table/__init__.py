"""Latency lookup tables of one network: its channel groups at several widths, timed in whole engines."""
