"""Fewer bits: calibration sets, post-training quantization, and distillation of students with quantized weights."""
