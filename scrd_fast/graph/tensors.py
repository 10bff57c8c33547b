"""Tensors of ONNX graphs as PyTorch's, and back, in every type that our graphs store."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EIGHT_BITS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int8: TensorProto.INT8,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
}


def to_proto(name: str, value: Tensor) -> onnx.TensorProto:
    """A tensor on the CPU as an initializer of the same type, float8_e4m3fn included."""
    raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return helper.make_tensor(name, ONNX_TYPES[value.dtype], value.shape, raw, raw=True)


def to_tensor(weight: onnx.TensorProto) -> Tensor:
    """An initializer as a tensor of its own memory."""
    value = np.array(numpy_helper.to_array(weight))
    if weight.data_type == TensorProto.FLOAT8E4M3FN:
        return torch.from_numpy(value.view(np.uint8)).view(torch.float8_e4m3fn)
    if weight.data_type == TensorProto.BFLOAT16:  # which older releases of ONNX give as float32
        return (torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
                if value.itemsize == 2 else torch.from_numpy(value).bfloat16())
    return torch.from_numpy(value)
