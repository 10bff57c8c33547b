"""TensorRT on an NVIDIA GPU: the whole network and its tail compiled into one plan.

The precision is written in the graph (graph.precision, graph.quantize), the network is strongly
typed, and one code path serves TensorRT 10.13 and later, 11, and TensorRT for RTX, which differ by
data (flavour.py). A plan runs behind the CUDA module that all GPU backends share: one execution
context and one CUDA graph per batch size.
"""

from scrd_fast.backends.tensorrt.backend import TensorRt
from scrd_fast.backends.tensorrt.flavour import TENSORRT

BACKEND = TensorRt(TENSORRT)

__all__ = ["BACKEND"]
