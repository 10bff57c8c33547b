"""Names of the published code's weights, and of torchvision's, in this package's terms."""

import re

_PREFIXES = {"encoder.": "teacher.", "bn.bn_layer.": "bottleneck.blocks.", "bn.": "bottleneck.",
             "decoder.": "student.", "mlp.": "scale_head.linear."}
# Parts that the published class owns but never runs.
_UNUSED = re.compile(r"^(teacher\.(layer4|fc)\.|bottleneck\.(conv4|bn4)\.)")


def rename_resnet(name: str) -> str:
    """A torchvision ResNet parameter name in this package's terms."""
    return re.sub(r"\b(downsample|upsample)\.", "shortcut.", name)


def rename_published(name: str) -> str | None:
    """A published state-dict key in this package's terms; None for a part that is never run.

    Raises KeyError for a name that the published class does not have.
    """
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            renamed = ours + rename_resnet(name[len(theirs):])
            return None if _UNUSED.match(renamed) else renamed
    raise KeyError(name)
