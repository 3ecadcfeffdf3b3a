"""The graph engine: bundles, recipes, stages, graphs, the store and the one loop over nodes. No torch, no onnx."""
