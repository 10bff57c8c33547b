"""Encoded images as clients send them: read as a file is, and never written to a disk."""

import os
from pathlib import Path
from typing import Any

from scrd_fast.data.decode.ahead import decode_file
from scrd_fast.data.decode.nifti import is_nifti
from scrd_fast.spec import DecodingRule

_HEAD = 4096  # bytes; enough to inflate NIfTI's header


def read_image(content: bytes, rule: DecodingRule) -> Any | str:
    """The pixels of the one image of a file's content, or why there are none.

    (H, W) or (H, W, 3), uint8, uint16 or float32 in [0, 1]. NIfTI, and DICOM or TIFF of several
    pictures, have no single score: it is told so.
    """
    if is_nifti(content[:_HEAD]):  # a volume takes seconds and gigabytes to read, for nothing
        return "expected a picture or DICOM of one image, got NIfTI"
    memory = os.memfd_create("image")  # a file of its own without a name on any disk
    try:
        with os.fdopen(memory, "wb", closefd=False) as file:
            file.write(content)
        path = Path(f"/proc/self/fd/{memory}")
        read = decode_file(path, rule)
        if read.error is not None:
            return str(read.error).replace(f"{path}: ", "", 1)
        if len(read.images) != 1:
            return f"expected a file of one image, got {len(read.images)}"
        return read.images[0].pixels
    finally:
        os.close(memory)
