"""The area under the ROC curve, by its definition."""

import numpy as np
import pytest

from scrd_fast.metrics.ranking import auroc


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_is_the_share_of_ordered_pairs(levels):
    """Few levels tie often; a tie counts half."""
    rng = np.random.default_rng(levels)
    labels = np.repeat([0, 1], [37, 23])
    scores = rng.integers(0, levels, 60) + labels * levels / 4
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None]
    expected = float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert auroc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_perfect_reversed_and_equal_scores():
    labels = np.array([0, 0, 1, 1])
    assert auroc(labels, labels) == 1
    assert auroc(labels, -labels) == 0
    assert auroc(labels, np.ones(4)) == 0.5
