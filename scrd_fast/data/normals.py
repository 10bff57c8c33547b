"""Normal images for what is learned after training: of a folder, or of a data set."""

import os
from pathlib import Path
from typing import Any

from scrd_fast.data.decode.find import arrange_files, find_files
from scrd_fast.data.layouts import read_data_set
from scrd_fast.errors import DataError


def find_normals(where: Any, *, trained_on: bool, stacklevel: int = 2) -> list[Path]:
    """The files of a list of paths, or the normal images of a folder or data set.

    Of a data set its validation part; without one the images to train on, where it has no other
    part or with `trained_on`, which allows images that the model has seen. Raises DataError where
    there is none, and for a file that repeats another one's object.
    """
    if isinstance(where, str | os.PathLike):
        found = read_data_set(where)
        alone = trained_on or not found.part("test")
        chosen = found.normals("validation") or (found.normals("train") if alone else ())
        if not chosen:
            raise DataError(f"{os.fsdecode(where)}: expected {'' if trained_on else 'held-out '}"
                            f"normal images, got a data set ({found.layout}) without; give a"
                            " folder of such")
        files = arrange_files([item.path for item in chosen], stacklevel=stacklevel + 1)
    else:
        files = find_files(where, stacklevel=stacklevel + 1)
    for reason in files.refused.values():
        raise DataError(reason)
    return files.paths
