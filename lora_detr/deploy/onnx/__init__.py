"""Export to ONNX: the graph, its tracing, its precision, and the proof that it predicts what the detector does."""
