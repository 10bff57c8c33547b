"""A folder whose subfolders are labels: good/, normal/, healthy/ ..., and kinds of anomalies."""

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import Tree, is_normal, name_some
from scrd_fast.errors import DataError

SHAPE = "good/ (or normal/, healthy/, control/) and <kind>/"


def recognises(tree: Tree) -> bool:
    return set(map(is_normal, tree.top())) == {True, False}


def read(tree: Tree) -> Found:
    """All images, to test on; raises DataError where an image lies in no subfolder."""
    loose = [path for path, parts in tree.images.items() if len(parts) == 1]
    if loose:
        raise DataError(f"{tree.root}: expected all images in subfolders, which are their labels"
                        f" ({SHAPE}), got {name_some(tree.root, loose)}")
    items = []
    for path, parts in tree.images.items():
        label = int(not is_normal(parts[0]))
        items.append(Item(path, label, split="test", group=parts[0] if label else None))
    return Found(items, [])
