"""Typographic signs by name, for they look like others in source code."""

from __future__ import annotations

TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
BEYOND = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
