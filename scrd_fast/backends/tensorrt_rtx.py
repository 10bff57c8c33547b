"""TensorRT for RTX: plans for many generations of GPUs, compiled on any machine.

See backends.tensorrt, whose one code path it is another flavour of.
"""

from scrd_fast.backends.tensorrt.backend import TensorRt
from scrd_fast.backends.tensorrt.flavour import TENSORRT_RTX

BACKEND = TensorRt(TENSORRT_RTX)
