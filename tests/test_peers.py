"""The peers of the benchmarks that a GPU times: the same numbers, held to each other on the CPU."""

import torch

from benchmarks.peers import PublishedInTorch, PublishedTail, published_map
from scrd_fast.model.reference import score_images
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.support.models import pictures

CPU = torch.device("cpu")


def test_the_post_processing_of_a_batch_is_that_of_an_image(make_features):
    spec = ScoringSpec(input_size=96, blur_sigma=2.5)
    teacher, student = (make_features(3, (24, 12, 6), seed, torch.float32) for seed in (1, 2))
    maps = PublishedTail(spec, CPU)(teacher, student)
    for i in range(3):
        expected = published_map([t[i : i + 1] for t in teacher], [s[i : i + 1] for s in student],
                                 spec)
        assert abs(maps[i].double().numpy() - expected).max() <= 5e-6


def test_the_published_model_on_a_gpu_is_the_reference():
    torch.manual_seed(0)
    model, spec = SCRD("resnet18").eval(), ScoringSpec(input_size=64)
    images = pictures(2, 64)
    expected, _ = score_images(model, spec, images)
    with torch.no_grad():
        scores, maps = PublishedInTorch(model, spec, torch.float32, CPU)(torch.from_numpy(images))
    assert float((scores - expected.mean).abs().max()) <= 1e-5
    assert float((maps - expected.map).abs().max()) <= 1e-4
