"""Images for what is learned after training: of a folder, or of a data set."""

import os
from pathlib import Path
from typing import Any

from scrd_fast.data.decode.find import arrange_files, find_files
from scrd_fast.data.layouts import normals as plain
from scrd_fast.data.layouts import read_data_set, table
from scrd_fast.data.layouts.read import LAYOUTS
from scrd_fast.data.layouts.tree import list_tree
from scrd_fast.errors import DataError
from scrd_fast.progress import Progress, silent, tell


def find_normals(
    where: Any, *, trained_on: bool, patient_from: str | None = None,
    progress: Progress = silent, stacklevel: int = 2,
) -> dict[Path, str | None]:
    """The files of a list of paths, or the normal images of a folder or data set, with the patient
    that each is of, None where only its content can tell.

    Of a data set its validation part; without one the images to train on, where it has no other
    part or with `trained_on`, which allows images that the model has seen. What was recognised is
    told of, unless progress is `silent`. patient_from: as in read_data_set. Raises DataError where
    there is none, and for a file that repeats another one's object.
    """
    patients: dict[Path, str | None] = {}
    if isinstance(where, str | os.PathLike):
        found = read_data_set(where, patient_from=patient_from, apart=not trained_on)
        alone = trained_on or not found.part("test")
        chosen = found.normals("validation") or (found.normals("train") if alone else ())
        tell(f"{os.fsdecode(where)}: {found.layout}: {len(chosen)} files of normal images",
             enabled=progress is not silent)
        if not chosen:
            raise DataError(f"{os.fsdecode(where)}: expected {'' if trained_on else 'held-out '}"
                            f"normal images, got a data set ({found.layout}) without; give a"
                            " folder of such")
        patients = {item.path: item.patient for item in chosen}
        files = arrange_files(list(patients), stacklevel=stacklevel + 1)
    else:
        files = find_files(where, stacklevel=stacklevel + 1)
    for reason in files.refused.values():
        raise DataError(reason)
    return {path: patients.get(path) for path in files.paths}


def find_anomalous(
    where: Any, *, patient_from: str | None = None, stacklevel: int = 2
) -> dict[Path, str | None]:
    """The files of a list of paths, or the anomalous images of a folder or data set, with patients;
    see find_normals.

    Of a data set those of its validation part, where there is none those of any part; of a folder
    whose names mean nothing all images. Raises DataError where there is none, and for a file that
    repeats another one's object.
    """
    paths = _list_plain(where, stacklevel + 1) if isinstance(where, str | os.PathLike) else where
    patients: dict[Path, str | None] = {}
    if paths is None:
        found = read_data_set(where, patient_from=patient_from)
        anomalous = [item for item in found.items if item.label == 1]
        chosen = [item for item in anomalous if item.split == "validation"] or anomalous
        if not chosen:
            raise DataError(f"{os.fsdecode(where)}: expected anomalous images, got a data set"
                            f" ({found.layout}) without; give a folder of such")
        patients = {item.path: item.patient for item in chosen}
        paths = list(patients)
    files = (find_files(paths, stacklevel=stacklevel + 1) if paths is where
             else arrange_files(paths, stacklevel=stacklevel + 1))
    for reason in files.refused.values():
        raise DataError(reason)
    return {path: patients.get(path) for path in files.paths}


def _list_plain(where: str | os.PathLike[str], stacklevel: int) -> list[Path] | None:
    """The images of a place whose names say nothing of labels; None of any other data set."""
    root = Path(where)
    if table.find_in(root) is not None:
        return None
    if not root.is_dir():
        return [root] if read_data_set(root).layout == "one file" else None
    tree = list_tree(root, stacklevel=stacklevel + 1)
    layout = next(each for each in LAYOUTS if each.recognises(tree))
    return [*tree.images] if layout.read is plain.read else None
