"""How scores order images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def auroc(labels: NDArray[np.int64], scores: Any) -> float:
    """Area under the ROC curve of scores (N,) for labels (N,), 1 = anomalous.

    It is Mann and Whitney's U over the number of pairs: the share of pairs of an anomalous and a
    normal image in which the anomalous one scores higher, ties counted by half.
    """
    from scipy.stats import mannwhitneyu

    scores = np.asarray(scores)
    anomalous, normal = scores[labels == 1], scores[labels == 0]
    statistic = mannwhitneyu(anomalous, normal, method="asymptotic").statistic
    return float(statistic) / (len(anomalous) * len(normal))


def rank_correlation(scores: Any, reference: Any) -> float:
    """Spearman's, of scores (N,)."""
    from scipy.stats import spearmanr

    return float(spearmanr(scores, reference).statistic)
