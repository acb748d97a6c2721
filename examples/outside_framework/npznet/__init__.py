"""Small dense networks in one archive, and their conversion to ONNX: an example of a framework of another distribution."""
