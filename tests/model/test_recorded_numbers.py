"""The reference model, loss and scoring against what the published code gave."""

import json

import numpy as np
import pytest
import torch

from scrd_fast.model.published import rename_published
from scrd_fast.ops.anomaly_map import anomaly_map
from scrd_fast.reference.anomaly_map import cosine_distance
from scrd_fast.spec import ScoringSpec
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.trainer import Trainer
from tests.support.published import published_model, recorded, relative
from tests.support.tolerances import allowed

FEATURES = allowed("features", "float32", "published")
SCORES = allowed("scores", "float32", "published")
LOSSES = allowed("training_loss", "float64", "published")


@pytest.fixture(scope="module")
def features():
    with torch.no_grad():
        return published_model()(torch.from_numpy(recorded()["images"]))


def test_scale_weights(features):
    assert relative(features.scale_weights, recorded()["scale_weights"]) <= SCORES


@pytest.mark.parametrize("k", [1, 2, 3])
def test_features_and_distances(features, k):
    step = {1: 8, 2: 4, 3: 2}[k]
    for name in ("teacher", "student"):
        sample = getattr(features, name)[k - 1][:, ::32, ::step, ::step]
        assert relative(sample, recorded()[f"{name}{k}_sample"]) <= FEATURES
    distance = cosine_distance(features.teacher[k - 1], features.student[k - 1])
    assert relative(distance, recorded()[f"distance{k}"]) <= SCORES


@pytest.mark.parametrize(("weighting", "name"), [
    ("none", "anomaly_map_official"), ("feature", "anomaly_map_official"),
    ("scale", "anomaly_map_scale_weighted")])
def test_maps(features, weighting, name):
    result = anomaly_map(*features, ScoringSpec(weighting=weighting))
    assert relative(result.map, recorded()[name]) <= SCORES


def test_scores(features):
    result = anomaly_map(*features, ScoringSpec())
    assert relative(result.mean, recorded()["score_mean_official"]) <= SCORES
    assert relative(result.max, recorded()["score_max_official"]) <= SCORES


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_training_steps_in_float64(steps):
    """Published steps: losses, first gradients, BatchNorm statistics after four. Several
    steps of a smaller model: test_published_step."""
    golden = recorded()
    model = published_model()
    config = TrainConfig(weighting="feature", published_batchnorm=True, input_size=128)
    trainer = Trainer(config, model, torch.device("cpu"), torch.float64)
    clean, noisy = (torch.from_numpy(golden[n]).double() for n in ("train_clean", "train_noisy"))
    for step in range(steps):
        figures = trainer.update(step, clean, noisy)
        for ours, theirs in (("loss", "train_loss"), ("loss_clean", "train_loss_clean"),
                             ("loss_noisy", "train_loss_noisy")):
            assert abs(figures[ours] - golden[theirs][step]) <= LOSSES, (step, ours)
        if step == 0:
            parameters = dict(model.named_parameters())
            for key, norm in json.loads(str(golden["grad_norms"])).items():
                if not key.startswith("mlp."):  # the head's gradient is rounding noise
                    gradient = parameters[rename_published(key)].grad
                    assert float(gradient.norm()) == pytest.approx(norm, rel=1e-7), key
    if steps == 4:
        for bn, name in ((model.bottleneck.bn1, "bn_running_mean_after"),
                         (model.student.layer3[0].bn1, "decoder_bn_running_mean_after")):
            np.testing.assert_allclose(bn.running_mean, golden[name], rtol=1e-6, atol=1e-7)
