"""PyTorch models: read a file, build from a recipe, save, edit, tap, count, convert to ONNX. No training here."""
