"""Small data sets to evaluate on, and their figures."""

import cv2
import numpy as np

from tests.support.models import organs

SIDE = 64  # of the engine's maps
NAMES = ("Quetzalcoatl", "Rumpelstilz", "Scheherazade", "Tiresias", "Ulixes", "Vercingetorix")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def spoiled(count, seed):
    """Organs with a bright square each, and masks of the squares."""
    images, masks = organs(count, 72, seed), np.zeros((count, 72, 72), np.uint8)
    rng = np.random.default_rng(seed)
    for image, mask, (y, x) in zip(images, masks, rng.integers(10, 50, (count, 2)), strict=True):
        image[y : y + 9, x : x + 9] = 255
        mask[y : y + 9, x : x + 9] = 255
    return images[:, :60], masks[:, :60]  # not square


def make_table(path, rows):
    """rows: (name, pixels, label, patient, split, group, mask or None)."""
    lines = ["path,label,patient,split,group,mask"]
    for name, pixels, label, patient, split, group, mask in rows:
        write(path.parent / f"{name}.png", pixels)
        if mask is not None:
            write(path.parent / f"{name}_mask.png", mask)
        lines.append(f"{name}.png,{label},{patient},{split},{group},"
                     + (f"{name}_mask.png" if mask is not None else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


def arrays(evaluation):
    return (np.array([each.label for each in evaluation.images]),
            np.array([each.score for each in evaluation.images], np.float32))


def shrunk(mask):
    """The value of the pixel at the centre of each of the map's pixels."""
    rows, columns = (np.floor((np.arange(SIDE) + 0.5) * side / SIDE).astype(int)
                     for side in mask.shape)
    return mask[np.ix_(rows, columns)] > 0
