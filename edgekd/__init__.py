"""edgekd: compress a trained vision model for an edge device, within a latency budget, with evidence."""

from __future__ import annotations

__version__ = "0.1.0"
