"""ONNX graphs: the portable one, its explicit precisions, and the quantised one."""
