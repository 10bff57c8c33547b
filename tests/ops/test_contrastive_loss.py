"""ops.contrastive_loss against the formula, its gradients, and two processes against one.

The implementations run side by side; the kernels in Triton's interpreter where there is no GPU.
"""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.parallel import DistributedDataParallel

from scrd_fast.errors import BackendUnavailable, InputError
from scrd_fast.ops import contrastive_loss as module
from scrd_fast.training.loop import leave_process_group
from tests.ops.each_impl import each_impl, slow_interpreted, where_it_runs
from tests.support.tolerances import allowed

contrastive_loss = where_it_runs(module.contrastive_loss)
SIDES = (9, 5, 2)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WIDE, NARROW = [torch.float64], [torch.float32]
every_impl = each_impl(reference=WIDE, native=NARROW, triton=WIDE)
no_reference = each_impl(reference=[], native=[torch.float32, torch.bfloat16],
                         triton=[torch.float64, torch.float32, torch.bfloat16])
no_reference_float32 = each_impl(reference=[], native=NARROW, triton=NARROW)


def soft_weights(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.softmax(torch.randn(n, 3, generator=generator, dtype=torch.float64), 1).to(dtype)


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


@each_impl(reference=DTYPES, native=[torch.float32, torch.bfloat16], triton=DTYPES)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("weighting", ["none", "scale", "feature"])
def test_loss_is_the_formula(make_features, impl, weighting, n, dtype):
    clean, noisy, student = (make_features(n, SIDES, seed, dtype) for seed in (1, 2, 3))
    noisy = [t + c for t, c in zip(noisy, clean, strict=True)]
    student[0][0] = 0  # a zero vector is at distance 1 to everything
    weights = soft_weights(n)
    factors = weights if weighting == "scale" else torch.ones_like(weights)

    got = contrastive_loss(clean, noisy, student, weights, weighting, impl=impl)

    assert got.loss.shape == ()
    assert got.loss.dtype == torch.promote_types(dtype, torch.float32)
    expected = published(clean, noisy, student, factors)
    for value, target in zip(got, expected, strict=True):
        error = float((value.double() - target).abs().max())
        assert error <= allowed("contrastive_loss", dtype, impl)


@every_impl
def test_feature_weighting_is_no_weighting(make_features, impl, dtype):
    clean, noisy, student = (make_features(2, SIDES, seed, dtype) for seed in (4, 5, 6))
    none = contrastive_loss(clean, noisy, student, soft_weights(2), "none", impl=impl)
    feature = contrastive_loss(clean, noisy, student, soft_weights(2), "feature", impl=impl)
    scale = contrastive_loss(clean, noisy, student, soft_weights(2), "scale", impl=impl)
    assert all(torch.equal(a, b) for a, b in zip(none, feature, strict=True))
    assert float((none.loss - scale.loss).abs()) > 1e-4


@every_impl
def test_a_perfect_student_has_no_loss(make_features, impl, dtype):
    clean, noisy = (make_features(2, SIDES, seed, dtype) for seed in (7, 8))
    loss = contrastive_loss(clean, noisy, clean, soft_weights(2), "scale", impl=impl).loss
    assert abs(float(loss)) <= allowed("contrastive_loss", dtype, impl)


def in_layout(t: Tensor, layout: str) -> Tensor:
    """The same values: channels-last, as every second element of a larger map, or width first."""
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([t, t + 1], dim=-1).flatten(3)[..., ::2]
    if layout == "width_first":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    return t


@every_impl
@pytest.mark.parametrize("layouts", [
    ("channels_last",) * 3, ("strided",) * 3, ("width_first",) * 3,
    ("contiguous", "channels_last", "strided"), ("strided", "contiguous", "channels_last"),
    ("channels_last", "channels_last", "contiguous")], ids="-".join)
def test_memory_layouts(make_features, impl, dtype, layouts):
    """Loss and gradients do not depend on how clean, noisy and student lie in memory."""
    features = [make_features(2, SIDES, seed, dtype) for seed in (9, 10, 11)]
    results = []
    for given in (("contiguous",) * 3, layouts):
        clean, noisy, student = ([in_layout(t, layout).detach() for t in maps]
                                 for maps, layout in zip(features, given, strict=True))
        student = [t.requires_grad_() for t in student]
        loss = contrastive_loss(clean, noisy, student, soft_weights(2), "scale", impl=impl).loss
        results.append([loss.detach(), *torch.autograd.grad(loss, student)])
    assert layouts[0] == "contiguous" or not clean[0].is_contiguous()
    for got, expected in zip(*reversed(results), strict=True):
        assert float((got - expected).abs().max()) <= allowed("contrastive_loss", dtype, impl)
    # The convolution before expects it.
    if impl != "reference" and layouts[2] == "channels_last":
        assert results[1][1].is_contiguous(memory_format=torch.channels_last)


@slow_interpreted
@each_impl(reference=WIDE, native=[], triton=WIDE)
@pytest.mark.parametrize("weighting", ["none", "scale"])
def test_gradients(make_features, impl, dtype, weighting):
    """Against finite differences, with respect to the student's maps and the scale weights; what
    has no float64 is held against the reference below."""
    clean, noisy, student = (make_features(2, (3, 2, 1), seed, dtype, channels=(2, 3, 4))
                             for seed in (12, 13, 14))
    inputs = [t.requires_grad_() for t in (*student, soft_weights(2))]

    def loss(a: Tensor, b: Tensor, c: Tensor, weights: Tensor) -> Tensor:
        # The weights reach an unweighted loss through nothing; 0 * w keeps gradcheck content.
        value = contrastive_loss(clean, noisy, (a, b, c), weights, weighting, impl=impl).loss
        return value + 0 * weights.sum()

    # Along one random direction for the kernels, whose interpreter takes 0.1 s a call.
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=impl == "triton")


def loss_and_gradients(maps, weights: Tensor, impl: str) -> list[Tensor]:
    """The loss and its gradients with respect to the student's maps and the weights."""
    clean, noisy, student = maps
    student = [s.detach().clone().requires_grad_() for s in student]
    weights = weights.clone().requires_grad_()
    loss = contrastive_loss(clean, noisy, student, weights, "scale", impl=impl).loss
    return [loss.detach(), *torch.autograd.grad(loss, [*student, weights])]


def hard_maps(make_features, dtype: torch.dtype) -> list[list[Tensor]]:
    """Maps of more than one part of 8192 elements, the last of which ends early, with vectors that
    are zero, constant, and shorter than the eps of the cosine."""
    clean, noisy, student = (make_features(3, (37, 11, 3), seed, dtype, channels=(13, 7, 1))
                             for seed in (15, 16, 17))
    student[0][0] = 0
    student[1][1] = 1e-10 * student[1][1]
    student[2][2] = 0.25
    clean[1][2], noisy[0][1], clean[2][2] = 0, 3, 0.25
    return [clean, noisy, student]


@no_reference
def test_gradients_are_the_reference_s(make_features, impl, dtype):
    """Of the same values: in bfloat16 the reference would round a gradient three times."""
    maps = hard_maps(make_features, dtype)
    sums = torch.promote_types(dtype, torch.float32)
    got = loss_and_gradients(maps, soft_weights(3, sums), impl)
    wide = [[m.double() for m in features] for features in maps]
    expected = loss_and_gradients(wide, soft_weights(3), "reference")
    assert [g.dtype for g in got] == [sums, dtype, dtype, dtype, sums]
    for value, target in zip(got, expected, strict=True):
        error, largest = (t.double().abs().reshape(len(t) if t.ndim else 1, -1).amax(1)
                          for t in (value.double() - target.double(), target))
        tolerance = allowed("contrastive_loss_gradient", value.dtype, impl)
        assert bool((error <= tolerance * largest).all()), (error, largest)


@no_reference_float32
def test_two_runs_give_the_same_bits(make_features, impl, dtype):
    maps = hard_maps(make_features, dtype)
    first, second = (loss_and_gradients(maps, soft_weights(3, dtype), impl) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@slow_interpreted
@no_reference_float32
def test_a_map_of_many_parts(make_features, impl, dtype):
    """130 of them on a GPU: more than are added up at a time."""
    maps = [make_features(1, (1030, 2, 1), seed, dtype, channels=(1, 1, 1)) for seed in (1, 2, 3)]
    got, expected = (contrastive_loss(*maps, soft_weights(1), "none", impl=which)
                     for which in (impl, "reference"))
    for value, target in zip(got, expected, strict=True):
        error = float((value - target).abs().max())
        assert error <= allowed("contrastive_loss", dtype, impl)


@no_reference_float32
@pytest.mark.parametrize("which", ["clean", "noisy", "student"])
def test_a_map_whose_squares_overflow_gives_no_number(make_features, impl, dtype, which):
    maps = {name: make_features(2, SIDES, seed, dtype)
            for seed, name in enumerate(("clean", "noisy", "student"))}
    maps[which][1] = maps[which][1] * 1e20
    got = contrastive_loss(**maps, scale_weights=torch.ones(2, 3), weighting="none", impl=impl)
    assert got.clean.isnan().tolist() == [False, which != "noisy", False]
    assert got.noisy.isnan().tolist() == [False, which != "clean", False]


@no_reference_float32
def test_what_has_no_gradient(make_features, impl, dtype):
    clean, noisy, student = (make_features(1, (3, 2, 1), seed, dtype) for seed in (1, 2, 3))
    arguments = (noisy, student, soft_weights(1), "none")
    teacher = [t.requires_grad_() for t in clean]
    with pytest.raises(BackendUnavailable, match="no gradient to the teacher's maps"):
        contrastive_loss(teacher, *arguments, impl=impl)
    with torch.no_grad():
        contrastive_loss(teacher, *arguments, impl=impl)
    student[0].requires_grad_()
    clean = [t.detach() for t in clean]
    loss = contrastive_loss(clean, *arguments, impl=impl).loss
    gradient, = torch.autograd.grad(loss, student[0], create_graph=True)
    with pytest.raises(BackendUnavailable, match="no second derivative; choose 'reference'"):
        gradient.sum().backward()


def test_a_trained_teacher_takes_the_reference(make_features):
    clean, noisy, student = (make_features(1, (3, 2, 1), seed, torch.float32) for seed in (1, 2, 3))
    clean[0].requires_grad_()
    loss = contrastive_loss(clean, noisy, student, soft_weights(1), "none").loss
    gradient, = torch.autograd.grad(loss, clean[0])
    assert float(gradient.abs().max()) > 0


def test_native_dtypes(make_features):
    maps = [make_features(1, (3, 2, 1), seed) for seed in (1, 2, 3)]
    with pytest.raises(BackendUnavailable, match=r"a dtype of .*float32.*got torch\.float64"):
        contrastive_loss(*maps, soft_weights(1), "none", impl="native")


@pytest.mark.gpu
def test_the_operator_is_registered_well(make_features):
    """What PyTorch's own checks find; tracing needs kernels that are not interpreted."""
    maps = [[t.to("cuda" if torch.cuda.is_available() else "cpu") for t in m]
            for m in (make_features(2, (3, 2, 1), seed, torch.float32) for seed in (1, 2, 3))]
    for s in maps[2]:
        s.requires_grad_()
    checks = ["test_schema", "test_autograd_registration"]
    if torch.cuda.is_available():
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    from scrd_fast.kernels import contrastive_loss as kernels

    torch.library.opcheck(kernels._terms, tuple(maps), test_utils=checks)


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
        ({"clean": [*good()[:2], good()[2].to("meta")]},
         "clean[2]: expected a dense tensor with values, got a tensor that is meta"),
        ({"student": [t.numpy() for t in good()]}, "student[0]: expected a tensor, got ndarray"),
        ({"noisy": None}, "noisy: expected three feature maps, got NoneType"),
        ({"clean": [good()[0].to_sparse(), *good()[1:]]},
         "clean[0]: expected a dense tensor with values, got a tensor that is torch.sparse_coo"),
        ({"noisy": [t.to("meta") for t in good()]},
         "noisy[0]: expected a dense tensor with values, got a tensor that is meta"),
        ({"student": [*good()[:2], good()[2].to("meta")]},
         "student[2]: expected a dense tensor with values, got a tensor that is meta"),
        ({"scale_weights": torch.ones(2, 3, device="meta")},
         "scale_weights: expected a dense tensor with values, got a tensor that is meta"),
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


@pytest.mark.slow
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
