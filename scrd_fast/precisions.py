"""The precisions that a network can compute in. Loads nothing, so that help can name them."""

QUANTISED = ("int8", "fp8")  # 8 bits, which need images to find their scales
PRECISIONS = ("fp32", "bf16", "fp16", *QUANTISED)
