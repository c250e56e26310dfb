"""The `tensorrt` target: strongly typed ONNX, with plug-in nodes that read the shared weights."""
