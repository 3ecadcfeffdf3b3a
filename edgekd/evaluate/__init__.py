"""Accuracy of a model as its runtime computes it, not as PyTorch would: quantized kernels differ between runtimes."""
