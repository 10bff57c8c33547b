"""Which images of a data set are trained on, and which are held out."""

import os
from pathlib import Path
from typing import Any

from scrd_fast.data.decode.find import arrange_files
from scrd_fast.data.layouts import Item, read_data_set
from scrd_fast.errors import DataError, expect
from scrd_fast.progress import tell


def normals_of(
    data: Any, validation: Any, patient_from: str | None, *, progress: bool
) -> tuple[Any, Any]:
    """What to train on and what to validate on, as ImageSet takes them; None for what is not told.

    data, validation, patient_from: as `train` has them. What was recognised is told of with
    `progress`. Raises DataError where a data set has no normal image to train on, and InputError
    for patient_from with images in memory.
    """
    if not isinstance(data, str | os.PathLike):
        expect(patient_from is None, "patient_from", "None unless data is the path of a data set",
               patient_from)
        held = None if validation is None else _held_out(validation, None)
        _check_apart(data, held)
        return data, held
    found = read_data_set(data, patient_from=patient_from)
    chosen = found.normals("train")
    if not chosen:
        tested = len(found.part("test"))
        raise DataError(f"{os.fsdecode(data)}: expected normal images to train on, got a data set"
                        f" ({found.layout}) without" + (
                            f"; its {tested} images are to test on: a column split, in a table or"
                            " in participants.tsv, can say otherwise" if tested else ""))
    held = found.normals("validation") or None
    told = "some of them held out" if held is None else f"{len(held)} files to validate on"
    if validation is not None:
        held, told = _held_out(validation, patient_from), "others to validate on"
        _check_apart(chosen, held)
    tell(f"{os.fsdecode(data)}: {found.layout}: {len(chosen)} files to train on, {told}",
         enabled=progress)
    for remark in found.remarks:
        tell(f"{os.fsdecode(data)}: {remark}", enabled=progress)
    return chosen, held


def _held_out(validation: Any, patient_from: str | None) -> Any:
    """Of a data set the normal images of its validation part; else of what is to train on; else of
    its test part."""
    if not isinstance(validation, str | os.PathLike):
        return validation
    found = read_data_set(Path(validation), patient_from=patient_from)
    held = next(filter(None, map(found.normals, ("validation", "train", "test"))), None)
    if held is None:
        raise DataError(f"{os.fsdecode(validation)}: expected normal images to validate on, got a"
                        f" data set ({found.layout}) without")
    return held


def _check_apart(chosen: Any, held: Any) -> None:
    """Raise DataError where a file is trained on and validated on."""
    for path in sorted(_files_of(chosen) & _files_of(held)):
        raise DataError(f"{path}: expected other images to validate on than those to train on, got"
                        " this one in both")


def _files_of(images: Any) -> set[str]:
    """Where the files of items, or of a list of paths, really are."""
    if not isinstance(images, tuple | list):
        return set()
    paths = [each.path if isinstance(each, Item) else each for each in images]
    return {os.path.realpath(path) for path in paths if isinstance(path, str | os.PathLike)}


def labelled_test(
    where: str | os.PathLike[str], patient_from: str | None = None
) -> tuple[list[Path], list[int]]:
    """The test images of a data set and their labels, 1 = anomalous, for `train(test=...)`."""
    found = [item for item in read_data_set(where, patient_from=patient_from).part("test")
             if item.label is not None]
    if {item.label for item in found} != {0, 1}:
        raise DataError(f"{where}: expected normal and anomalous test images, such as in folders"
                        " good/ and others beside it, got none of one kind")
    labels = {item.path: int(item.label == 1) for item in found}
    paths = arrange_files(list(labels), stacklevel=3).paths
    return paths, [labels[path] for path in paths]
