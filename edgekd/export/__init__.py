"""From a trained module to what a device runs: ONNX, FP16, TensorRT engines, and the package that is handed over."""
