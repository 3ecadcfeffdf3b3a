"""Latency without the device: a roofline fitted to timings of this machine, or taken from a target's card."""
