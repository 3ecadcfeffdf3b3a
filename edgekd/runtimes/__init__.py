"""One way to open a model and run it, whatever executes it: ONNX Runtime, OpenVINO, TensorRT or PyTorch."""
