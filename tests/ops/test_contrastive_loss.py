"""ops.contrastive_loss against the formula, its gradients, and two processes against one."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.parallel import DistributedDataParallel

from scrd_fast.errors import InputError
from scrd_fast.ops.contrastive_loss import contrastive_loss
from scrd_fast.training.loop import leave_process_group
from tests.tolerances import allowed

SIDES = (9, 5, 2)


def soft_weights(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.softmax(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1)


def published(clean, noisy, student, factors: Tensor) -> list[Tensor]:
    """Loss, clean terms, noisy terms in float64: batch means per scale, then the ratio of sums."""
    terms = []
    for teacher in (clean, noisy):
        per_scale = []
        for k, (t, s) in enumerate(zip(teacher, student, strict=True)):
            t, s = t.double().reshape(len(t), -1), s.double().reshape(len(s), -1)
            per_scale.append((factors[:, k] * (1 - cosine_similarity(t, s))).mean())
        terms.append(torch.stack(per_scale))
    return [terms[0].sum() / terms[1].sum(), *terms]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("weighting", ["none", "scale", "feature"])
def test_loss_is_the_formula(make_features, weighting, n, dtype):
    clean, noisy, student = (make_features(n, SIDES, seed, dtype) for seed in (1, 2, 3))
    noisy = [t + c for t, c in zip(noisy, clean, strict=True)]
    student[0][0] = 0  # a zero vector is at distance 1 to everything
    weights = soft_weights(n)
    factors = weights if weighting == "scale" else torch.ones_like(weights)

    got = contrastive_loss(clean, noisy, student, weights, weighting)

    assert got.loss.shape == ()
    assert got.loss.dtype == torch.promote_types(dtype, torch.float32)
    expected = published(clean, noisy, student, factors)
    for value, target in zip(got, expected, strict=True):
        error = float((value.double() - target).abs().max())
        assert error <= allowed("contrastive_loss", dtype)


def test_feature_weighting_is_no_weighting(make_features):
    clean, noisy, student = (make_features(2, SIDES, seed) for seed in (4, 5, 6))
    none = contrastive_loss(clean, noisy, student, soft_weights(2), "none")
    feature = contrastive_loss(clean, noisy, student, soft_weights(2), "feature")
    scale = contrastive_loss(clean, noisy, student, soft_weights(2), "scale")
    assert all(torch.equal(a, b) for a, b in zip(none, feature, strict=True))
    assert float((none.loss - scale.loss).abs()) > 1e-4


def test_a_perfect_student_has_no_loss(make_features):
    clean, noisy = make_features(2, SIDES, 7), make_features(2, SIDES, 8)
    loss = contrastive_loss(clean, noisy, clean, soft_weights(2), "scale").loss
    assert abs(float(loss)) <= allowed("contrastive_loss", torch.float64)


def test_non_contiguous_features(make_features):
    features = [make_features(2, SIDES, seed) for seed in (9, 10, 11)]
    other = [[t.contiguous(memory_format=torch.channels_last) for t in maps] for maps in features]
    assert not other[0][0].is_contiguous()
    expected = contrastive_loss(*features, soft_weights(2), "scale").loss
    got = contrastive_loss(*other, soft_weights(2), "scale").loss
    assert float((got - expected).abs()) <= allowed("contrastive_loss", torch.float64)


@pytest.mark.parametrize("weighting", ["none", "scale"])
def test_gradients(make_features, weighting):
    """Against finite differences, with respect to the student's maps and the scale weights."""
    clean, noisy, student = (make_features(2, (3, 2, 1), seed, channels=(2, 3, 4))
                             for seed in (12, 13, 14))
    inputs = [t.requires_grad_() for t in (*student, soft_weights(2))]

    def loss(a: Tensor, b: Tensor, c: Tensor, weights: Tensor) -> Tensor:
        # The weights reach an unweighted loss through nothing; 0 * w keeps gradcheck content.
        value = contrastive_loss(clean, noisy, (a, b, c), weights, weighting).loss
        return value + 0 * weights.sum()

    assert torch.autograd.gradcheck(loss, inputs)


def good(n: int = 2) -> list[Tensor]:
    return [torch.ones(n, 2, 8, 8), torch.ones(n, 3, 4, 4), torch.ones(n, 4, 2, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weighting": "paper"},
         "weighting: expected one of ('none', 'scale', 'feature'), got 'paper'"),
        ({"scale_weights": torch.ones(2, 2)}, "scale_weights: expected (2, 3), got (2, 2)"),
        ({"student": good()[:2]}, "student: expected three feature maps, got 2"),
        ({"student": good(3)}, "student[0]: expected (2, 2, 8, 8), got (3, 2, 8, 8)"),
        ({"clean": good()[:2]}, "clean: expected three feature maps, got 2"),
        ({"noisy": good()[:2]}, "noisy: expected three feature maps, got 2"),
        ({"noisy": [t.long() for t in good()]},
         "noisy[0]: expected torch.float32, got torch.int64"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    arguments = {"clean": good(), "noisy": good(), "student": good(),
                 "scale_weights": torch.ones(2, 3), "weighting": "none"}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        contrastive_loss(**(arguments | change))


def test_noisy_maps_of_another_shape():
    """The message must not blame the student, which fits the clean maps."""
    noisy = good()
    noisy[1] = torch.ones(2, 3, 4, 5)
    with pytest.raises(InputError, match=r"^noisy\[1\]: expected \(2, 3, 4, 4\), got \(2, 3, 4, 5"):
        contrastive_loss(good(), noisy, good(), torch.ones(2, 3), "none")


class TinyNetwork(nn.Module):
    """Student maps and scale weights of 4-channel images, without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(4, c, 1) for c in (2, 3, 5))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = [conv(images[..., ::step, ::step])
                for conv, step in zip(self.maps, (1, 2, 3), strict=True)]
        return maps, torch.softmax(self.head(images.mean(dim=(2, 3))), dim=1)


def tiny_step(images: Tensor, world: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a tiny network; the teachers are two other seeds of it."""
    networks = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        networks.append(TinyNetwork().double())
    with torch.no_grad():
        clean, noisy = (network(images)[0] for network in networks[1:])
    trained = DistributedDataParallel(networks[0]) if world > 1 else networks[0]
    student, weights = trained(images)
    loss = contrastive_loss(clean, noisy, student, weights, "scale").loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in networks[0].named_parameters()}


def tiny_images() -> Tensor:
    return torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# Images of each process: an even split, and one that a mean of means would get wrong.
SPLITS = ((slice(0, 2), slice(2, 4)), (slice(0, 3), slice(3, 4)))


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    steps = [tiny_step(tiny_images()[split[rank]], world=2) for split in SPLITS]
    torch.save(steps, Path(folder) / f"{rank}.pt")
    leave_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    loss, gradients = tiny_step(tiny_images(), world=1)
    tolerance = allowed("contrastive_loss", torch.float64)
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-3
    for rank in range(2):
        for got_loss, got in torch.load(tmp_path / f"{rank}.pt"):
            assert float((got_loss - loss).abs()) <= tolerance
            assert got.keys() == gradients.keys()
            for name, gradient in gradients.items():
                assert float((got[name] - gradient).abs().max()) <= tolerance, name
