"""The precisions that a network can compute in. Loads nothing, so that help can name them."""

QUANTISED = ("int8", "fp8")  # 8 bits, which need images to find their scales
PRECISIONS = ("fp32", "bf16", "fp16", *QUANTISED)

# The greatest magnitude of a number.
LARGEST = {"int8": 127.0, "fp8": 448.0}
# Of a weight, where two products with bytes up to 255 are added in 16 bits, as AVX2 and AVX-512
# without VNNI do: beyond it sums saturate. On the tests' trained ResNet-18 1.6 % of the decisions
# flip with weights up to 127 there, 0.3 % up to 63, and 0.5 % up to 127 with VNNI.
UNSATURATED = 63.0
