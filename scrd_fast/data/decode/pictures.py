"""PNG, JPEG, TIFF and BMP: the reader of data/pictures, by a rule."""

from pathlib import Path

from scrd_fast.data.decode.image import DecodedImage, Source
from scrd_fast.data.pictures.read import read_pictures
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule


def read_one_picture(path: Path, rule: DecodingRule) -> list[DecodedImage]:
    """The pages of a file, in the type that it has: uint8, uint16, or float32 in [0, 1].

    DataError gives the reason without the path.
    """
    if rule.intensity == "window":
        raise DataError("expected values in units that a window can be put on, got a picture")
    pages = read_pictures(path, rule.most_megapixels * 1_000_000, rule.exif)
    return [DecodedImage(pixels, None, Source(path, frame=number if len(pages) > 1 else None))
            for number, pixels in enumerate(pages)]
