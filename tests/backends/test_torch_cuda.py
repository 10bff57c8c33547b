"""The PyTorch and Triton engine on a GPU; test_engine and test_scorer hold every backend."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.backends.convolutions import Choices
from scrd_fast.backends.registry import native_precisions
from scrd_fast.engine.engine_file import EngineFile
from scrd_fast.errors import BackendUnavailable, DeviceMemoryError, InputError, NotFiniteError
from scrd_fast.graph.stored import CONVOLUTIONS
from scrd_fast.metrics.agreement import Limits
from scrd_fast.model.reference import score_images
from tests.support.gpu import ON_GPU
from tests.support.models import pictures

pytestmark = ON_GPU
BUCKETS = (1, 2, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A ResNet-18 trained for a short while, and its normal images."""
    out = tmp_path_factory.mktemp("trained") / "model.safetensors"
    normals = pictures(128, 128)
    scrd_fast.train(normals, out, backbone="resnet18", teacher="random", input_size=128, steps=150,
                    batch_size=16, validate_every=150, precision="bf16", progress=False)
    return out, normals


@pytest.fixture(scope="module")
def engine(small_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("cuda") / "model.scrd"
    with scrd_fast.build_engine(small_path, out, device="cuda", precision="fp32",
                                buckets=BUCKETS) as engine:
        yield engine


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_trained_model_keeps_the_fidelity_limits(trained, tmp_path, precision):
    """bf16 may flip decisions of a model that was trained briefly; see docs/performance.md."""
    path, normals = trained
    limits = Limits(rank_correlation=0.999) if precision == "bf16" else None
    with scrd_fast.build_engine(path, tmp_path / "m.scrd", device="cuda", precision=precision,
                                images=normals, limits=limits) as engine:
        report = engine.manifest.fidelity.report
        assert engine.manifest.backend == "torch_cuda"
        assert engine.manifest.buckets == (1, 8, 32)
        assert report.rank_correlation is None or report.rank_correlation >= 0.999
        used = engine.manifest.precision_used
        assert list(used["convolutions"]) == [precision.replace("p", "")]
        assert list(used["tail"]) == ["f32"]
        assert engine.manifest.machine.gpu is not None


def test_auto_takes_fp16(trained, tmp_path):
    path, normals = trained
    limits = Limits(rank_correlation=0.99)
    with scrd_fast.build_engine(path, tmp_path / "m.scrd", images=normals,
                                limits=limits) as engine:
        assert (engine.manifest.backend, engine.manifest.precision) == ("torch_cuda", "fp16")
    with scrd_fast.load_engine(tmp_path / "m.scrd", verify=True) as engine:
        assert engine.score(normals[:2]).scores.shape == (2,)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 20])
@pytest.mark.parametrize("side", [64, 100])
def test_images_on_the_gpu_score_as_those_on_the_cpu(engine, small, count, side):
    images = pictures(count, side)
    on_cpu = engine.score(images)
    on_gpu = engine.score(torch.from_numpy(images).cuda())
    np.testing.assert_array_equal(on_gpu.scores, on_cpu.scores)
    np.testing.assert_array_equal(on_gpu.maps, on_cpu.maps)
    reference, _ = score_images(small.model, small.spec, images)
    expected = reference.score(small.spec).numpy()
    assert np.abs(on_cpu.scores - expected).max() <= 1e-4 * np.abs(expected).max()


def test_views_on_the_gpu_are_read_as_they_are(engine):
    images = pictures(4, 96)
    stored = torch.from_numpy(images).cuda().permute(0, 3, 1, 2).contiguous()
    np.testing.assert_array_equal(engine.score(stored.permute(0, 2, 3, 1)).scores,
                                  engine.score(images).scores)
    np.testing.assert_array_equal(engine.score(list(torch.from_numpy(images).cuda())).scores,
                                  engine.score(list(images)).scores)


def test_an_image_that_is_still_being_made(engine):
    """The engine's stream waits for the caller's."""
    images = torch.from_numpy(pictures(2, 64)).cuda()
    expected = engine.score(images).scores
    for _ in range(5):
        made = torch.zeros_like(images)
        torch.cuda._sleep(20_000_000)
        made.copy_(images)
        np.testing.assert_array_equal(engine.score(made).scores, expected)


def test_padding_is_never_seen(engine):
    images = pictures(3, 64)
    for others in (pictures(8, 64, seed=5), np.full((8, 64, 64, 3), 255, np.uint8)):
        engine.score(others)  # stays in the rows behind the three
        result = engine.score(images)
        assert result.scores.shape == (3,)
        assert result.maps.shape == (3, 64, 64)
        alone = [engine.score(images[i : i + 1]).scores[0] for i in range(3)]
        np.testing.assert_allclose(result.scores, alone, rtol=1e-5)


def test_submitting_waits_for_nothing(engine):
    images = torch.from_numpy(pictures(9, 64)).cuda()
    engine.score(images)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [engine.submit(images) for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = engine.score(images).scores
    for p in pending:
        np.testing.assert_array_equal(p.result(timeout=30).scores, expected)


def test_ten_thousand_batches_leave_the_gpu_memory_as_it_was(engine):
    batches = [torch.from_numpy(pictures(n, side)).cuda() for n, side in ((1, 64), (3, 100))]
    batches.append(pictures(2, 80))

    def score(count: int) -> None:
        for i in range(count):
            engine.score(batches[i % 3])

    score(100)
    before = torch.cuda.memory_reserved()
    score(10_000)
    assert torch.cuda.memory_reserved() == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_not_finite_passes_the_fused_convolutions(small_path, tmp_path, precision):
    """A ReLU that makes 0 of NaN would give a score as if all were well."""
    images = torch.rand(3, 64, 64, 3)
    images[1, 30, 31, 0] = float("nan")
    with scrd_fast.build_engine(small_path, tmp_path / "m.scrd", device="cuda",
                                precision=precision, limits=Limits()) as engine:
        with pytest.raises(InputError, match=r"^batch: the network's output for image 1 is not"):
            engine.score(images.cuda())
        assert np.isfinite(engine.score(images[:1]).scores).all()


def test_an_engine_made_in_inference_mode(small_path, tmp_path):
    """Its buffers are written to later, outside of that mode."""
    with torch.inference_mode():
        engine = scrd_fast.build_engine(small_path, tmp_path / "m.scrd", device="cuda",
                                        precision="fp32", buckets=(1,))
    with engine:
        assert np.isfinite(engine.score(pictures(2, 64)).scores).all()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_images_that_are_not_finite(engine, number):
    images = torch.rand(3, 64, 64, 3)
    images[1, 5, 6, 0] = number
    with pytest.raises(InputError, match=r"^batch: expected finite values, got .* at index \(1, 5"):
        engine.score(images)
    with pytest.raises(InputError, match=r"^batch: the network's output for image 1 is not finite"):
        engine.score(images.cuda())
    assert np.isfinite(engine.score(torch.rand(3, 64, 64, 3).cuda()).scores).all()


def test_bad_devices(engine, small_path, tmp_path):
    images = [torch.from_numpy(image) for image in pictures(3, 64)]
    images[2] = images[2].cuda()
    with pytest.raises(InputError, match=r"^batch\[2\]: expected a tensor on cpu as batch\[0\], got"
                                         " one on cuda:0$"):
        engine.score(images)
    count = torch.cuda.device_count()
    with pytest.raises(BackendUnavailable, match=f"^device 'cuda:{count}': expected an index below"
                                                 f" {count}, the number of GPUs$"):
        scrd_fast.build_engine(small_path, tmp_path / "m.scrd", device=f"cuda:{count}")
    with pytest.raises(InputError, match=r"^device: expected a GPU with backend 'torch_cuda'"):
        scrd_fast.build_engine(small_path, tmp_path / "m.scrd", device="cpu",
                               backend="torch_cuda")
    with pytest.raises(BackendUnavailable, match="one stream"):
        scrd_fast.load_engine(engine.path, mode="throughput")


@pytest.fixture
def little_memory():
    """Leaves PyTorch some megabytes of the GPU."""
    def leave(megabytes: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        allowed = torch.cuda.memory_reserved() + megabytes * 2**20
        torch.cuda.set_per_process_memory_fraction(allowed / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_bucket_that_does_not_fit_is_left_out(engine, small_path, tmp_path, little_memory):
    """The kernels of batches of 1 and 2 are tuned since `engine` was made: timing takes memory."""
    little_memory(500)
    with pytest.warns(UserWarning, match="^a batch of 1024 does not fit into the memory of cuda:0"):
        built = scrd_fast.build_engine(small_path, tmp_path / "m.scrd", device="cuda",
                                       precision="fp32", buckets=(1, 2, 1024))
    with built:
        assert built.manifest.buckets == (1, 2)
        assert built.score(pictures(11, 64)).scores.shape == (11,)


def test_no_room_at_all(small_path, tmp_path, little_memory):
    little_memory(4)
    with pytest.raises(DeviceMemoryError, match=r"^device 'cuda:0': expected free memory for"):
        scrd_fast.build_engine(small_path, tmp_path / "m.scrd", device="cuda", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_the_engine_survives_images_that_do_not_fit(engine, little_memory):
    images = pictures(2, 64)
    expected = engine.score(images).scores
    little_memory(32)
    with pytest.raises(DeviceMemoryError, match=r"^batch: expected images that fit .*got 96 MB"):
        engine.score(np.zeros((2, 4096, 4096, 3), np.uint8))
    np.testing.assert_array_equal(engine.score(images).scores, expected)


def test_an_overflow_does_not_reach_later_batches_of_its_bucket(small_path, tmp_path):
    """A fused convolution is handed its own, uninitialised output as a residual with factor 0: NaN
    that an earlier batch left there must not come through."""
    images = torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    bad = images.clone()
    bad[:] = float("nan")
    with scrd_fast.build_engine(small_path, tmp_path / "m.scrd", device="cuda", precision="fp16",
                                buckets=(1, 8), limits=Limits()) as engine:
        expected = engine.score(images)
        for _ in range(3):
            with pytest.raises(NotFiniteError):
                engine.score(bad.cuda())
            again = engine.score(images)
            np.testing.assert_array_equal(again.scores, expected.scores)
            np.testing.assert_array_equal(again.maps, expected.maps)


needs_cudnn = pytest.mark.skipif(find_spec("cudnn") is None, reason="nvidia-cudnn-frontend is not"
                                 " installed: pip install -e '.[cudnn]'")


@needs_cudnn
@pytest.mark.parametrize("precision", ["fp16", *(
    pytest.param(precision, marks=pytest.mark.slow) for precision in ("bf16", "int8", "fp8"))])
def test_convolutions_run_as_they_were_chosen(small_path, tmp_path, precision, monkeypatch):
    """Measured once, when the engine is built; an engine that is loaded computes the same."""
    if precision not in native_precisions("torch_cuda"):
        pytest.skip(f"this GPU has no tensor cores of {precision}")
    path, images = tmp_path / "m.scrd", pictures(9, 64)
    with scrd_fast.build_engine(small_path, path, device="cuda", precision=precision,
                                images=images, limits=Limits(), buckets=BUCKETS) as engine:
        expected = engine.score(images)
        assert "cuDNN frontend" in engine.version
    choices = Choices.from_bytes(bytes(EngineFile(path).members[CONVOLUTIONS]))
    assert choices.gpu == torch.cuda.get_device_name(0)
    assert choices.ways
    assert {layer.images for layer in choices.ways} <= set(BUCKETS)
    with scrd_fast.load_engine(path, verify=True) as engine:
        again = engine.score(images)
        np.testing.assert_array_equal(again.scores, expected.scores)
        np.testing.assert_array_equal(again.maps, expected.maps)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Another")
    with pytest.warns(UserWarning, match="run as PyTorch runs them, .*: they were chosen on NV"), \
            scrd_fast.load_engine(path) as engine:
        np.testing.assert_allclose(engine.score(images).scores, expected.scores, rtol=1e-2)
