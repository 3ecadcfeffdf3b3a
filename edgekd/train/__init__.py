"""The training engine: one loop for supervised training, distillation and quantized distillation."""
