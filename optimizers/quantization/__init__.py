"""Quantization of ONNX graphs: integers for weights and activations, layer by layer."""
