"""Items whose maps are known, of volumes, series and pictures made by hand."""

import itertools

import cv2
import nibabel
import numpy as np

import scrd_fast
from scrd_fast.engine.stream import Scored
from scrd_fast.spec import DecodingRule
from tests.data.decode.dicom_by_hand import dicom, save

SIDE = 32  # of maps
SHAPE = (13, 17, 11)
# A turned and sheared grid, so that no axis is the world's, nor a multiple of it.
AFFINE = np.array([[2.1, -0.4, 0.3, -30], [0.5, 1.7, -0.2, 12], [-0.1, 0.3, 3.2, 40], [0, 0, 0, 1]])
ORIENTATIONS = [np.column_stack([axes, flips])
                for axes in itertools.permutations(range(3))
                for flips in itertools.product([1, -1], repeat=3)]
DIRECTIONS = {"axial": [1, 0, 0, 0, 1, 0], "sagittal": [0, 1, 0, 0, 0, -1],
              "oblique": [0.8, 0.6, 0, 0, 0, -1], "flipped": [-1, 0, 0, 0, 1, 0]}


def scored(images, make_map):
    """What an engine would give for decoded images; `make_map` is called with each."""
    return [Scored(i, image.source, image.pixels, np.float32(i), make_map(image),
                   np.zeros(3, np.float32), geometry=image.geometry)
            for i, image in enumerate(images)]


def world_x_and_z(image):
    """A map whose values are x + 1000 z mm of where its pixels' centres lie: bilinear resampling
    keeps what is linear, so each voxel must say where it is."""
    rows, columns = image.pixels.shape[:2]
    at = np.stack(np.meshgrid((np.arange(SIDE) + 0.5) * rows / SIDE - 0.5,
                              (np.arange(SIDE) + 0.5) * columns / SIDE - 0.5, [0], [1],
                              indexing="ij"), -1).reshape(SIDE, SIDE, 4)
    return ((at @ image.geometry.T) @ [1, 0, 1000, 0]).astype(np.float32)


def brightness(image):
    return cv2.resize(image.pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def world_of(affine, shape):
    """Of each voxel, (*shape, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def save_volume(path, affine=AFFINE, orientation=ORIENTATIONS[0], shape=SHAPE,
                kind=nibabel.Nifti1Image, lesion=None):
    """A volume in any orientation; voxel `lesion` of the canonical one is the brightest."""
    voxels = np.random.default_rng(7).integers(1, 900, shape).astype(np.int16)
    if lesion is not None:
        voxels[lesion] = 4000
    image = kind(voxels, affine).as_reoriented(orientation)
    image.header["sform_code"] = 2
    image.to_filename(path)
    return path


def read(path, **rule):
    return scrd_fast.read_images(path, DecodingRule("window", (0.0, 4000.0), **rule))


def write_series(folder, heights, plane="axial", size=(19, 23), shift=(0, 0, 0), **elements):
    """Slices at these heights along the normal, in mm, each moved by `shift` times its height."""
    folder.mkdir()
    directions = np.array(DIRECTIONS[plane], float)
    normal = np.cross(directions[:3], directions[3:])
    for number, height in enumerate(heights):
        position = [5, -70, 9] + normal * height + np.array(shift) * height
        pixels = np.random.default_rng(number).integers(1, 900, size).astype(np.uint16)
        save(dicom(pixels, **{"StudyInstanceUID": "1", "SeriesInstanceUID": "1.2",
                              "PixelSpacing": [0.7, 0.9], "SliceThickness": 5,
                              "InstanceNumber": number,
                              "ImageOrientationPatient": list(directions),
                              "ImagePositionPatient": [round(float(x), 6) for x in position],
                              **elements}), folder / f"{number:02d}")
    return folder


def brightness_of_colour(image):
    return cv2.resize(image.pixels[..., 0], (SIDE, SIDE))
