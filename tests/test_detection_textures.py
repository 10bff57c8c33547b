"""The set of real pictures follows the law in the head of its module."""

import numpy as np
import pytest

from benchmarks.detection import textures

pytestmark = pytest.mark.skipif(bool(textures.missing()), reason=str(textures.missing()))


def test_parts_are_disjoint_columns():
    seen = np.zeros(512, int)
    for part in (textures.TRAINED, textures.VALIDATED, textures.TESTED):
        for first, end in part:
            assert end - first >= textures.SIDE
            seen[first:end] += 1
    assert (seen == 1).all()


def find(tile: np.ndarray) -> list[tuple[str, int]]:
    """Which pictures have this tile, and at which column it begins."""
    found = []
    for name in textures.NORMAL:
        windows = np.lib.stride_tricks.sliding_window_view(textures.read_picture(name), (1, 64))
        tops, lefts = np.nonzero((windows[:, :, 0, :8] == tile[0, :8]).all(-1))
        found += [(name, int(left)) for top, left in zip(tops, lefts, strict=True)
                  if top <= 448 and left <= 448 and np.array_equal(
                      textures.read_picture(name)[top : top + 64, left : left + 64], tile)]
    return found


def test_normal_tiles_are_of_their_columns():
    train, held = textures.normal_tiles(9, 6, seed=3)
    assert train.shape == (9, 64, 64)
    for tiles, columns in ((train, textures.TRAINED), (held, textures.VALIDATED)):
        places = [find(tile) for tile in tiles]
        assert {name for place in places for name, _ in place} == set(textures.NORMAL)
        for place in places:
            assert any(first <= left <= end - 64 for _, left in place for first, end in columns)
    again, _ = textures.normal_tiles(9, 6, seed=3)
    np.testing.assert_array_equal(again, train)
    assert not np.array_equal(textures.normal_tiles(9, 6, seed=4)[0], train)


def test_a_tile_has_a_normal_image_and_one_of_each_kind():
    images, masks, tiles, kinds = textures.tested_tiles(0, 24)
    assert images.shape == masks.shape == (3 * 24 * 4, 64, 64)
    assert kinds.tolist() == [-1, 0, 1, 2] * 72
    assert tiles.tolist() == [tile for tile in range(72) for _ in range(4)]
    assert masks.any(axis=(1, 2)).tolist() == (kinds >= 0).tolist()
    normal = np.repeat(images[::4], 4, axis=0)
    changed = images != normal
    # Outside of the mask only the edge of the profile changes anything.
    assert (changed & ~masks).sum() < changed.sum() / 2
    areas = [masks[kinds == kind].sum(axis=(1, 2)) for kind in range(3)]
    for area in areas[:2]:
        assert np.pi * 5.5**2 < area.min() < area.max() < np.pi * 12.5**2
    assert 25 < areas[2].min() < areas[2].max() < 2 * 42 * 1.5
    again = textures.tested_tiles(0, 2)[0]
    np.testing.assert_array_equal(again[:8], images[:8])
    other = textures.tested_tiles(1, 24)[0]
    np.testing.assert_array_equal(other[::4], images[::4])  # the same tiles
    assert not np.array_equal(other[1::4], images[1::4])


def test_kinds_change_what_they_say():
    rng = np.random.default_rng(0)
    tile = textures.read_picture("gravel")[:64, :64]
    for _ in range(20):
        foreign, worn, scratch = (textures.add_anomaly(tile, kind, rng) for kind in textures.KINDS)
        image, mask = scratch
        change = image.astype(int) - tile
        clear = mask & (image > 0) & (image < 255)
        assert set(np.abs(change[clear]).tolist()) <= set(range(30, 61))
        assert len(set(np.sign(change[clear]).tolist())) == 1
        image, mask = worn
        assert np.abs(np.diff(image.astype(int), axis=1)[mask[:, 1:]]).mean() < 0.6 * np.abs(
            np.diff(tile.astype(int), axis=1)[mask[:, 1:]]).mean()
        assert foreign[0][foreign[1]].tolist() != tile[foreign[1]].tolist()
