"""Devices as data: what a target can run, its peak rates, and a latency model made of them. No torch, no onnx."""
