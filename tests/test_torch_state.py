"""What the caller has set in PyTorch, NumPy and Python is left as it was, and changes no result."""

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.metrics.agreement import Limits
from scrd_fast.model.checkpoint import load_checkpoint, read_tensors
from scrd_fast.model.scrd import SCRD, model_without_weights, new_model
from scrd_fast.torch_state import exact_convolutions, own_state, seeded

ROOT = Path(__file__).parents[1]
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 40, 40), dtype=np.uint8)
SMALL: dict[str, Any] = {
    "backbone": "resnet18", "input_size": 32, "steps": 1, "batch_size": 2, "device": "cpu",
    "progress": False,
    "noise": NoiseConfig(min_side=4, max_share=0.25)}


def state() -> dict[str, Any]:
    """All that a caller can notice, but for generators on GPUs."""
    return {
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "NumPy generator": repr(np.random.get_state()),  # noqa: NPY002
        "Python generator": random.getstate(),
        "dtype": torch.get_default_dtype(), "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"), "NumPy errors": np.geterr(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cuDNN": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def tensors(path: Path, kind: str) -> dict[str, torch.Tensor]:
    return read_tensors(path, kind)[1]


def everything(folder: Path) -> dict[str, Any]:
    """What each public function gives, by its name; the state is looked at after each."""
    folder.mkdir()
    teacher, model, engine = (folder / name for name in (
        "t.safetensors", "m.safetensors", "m.scrd"))
    before, found = state(), dict[str, Any]()

    def keep(name: str, call: Callable[[], Any]) -> None:
        found[name] = call()
        after = state()
        assert {k for k in before if before[k] != after[k]} == set(), name

    def run_pretrain() -> dict[str, torch.Tensor]:
        return tensors(scrd_fast.pretrain_teacher(IMAGES, teacher, **SMALL), "teacher")

    def run_train() -> dict[str, torch.Tensor]:
        scrd_fast.train(IMAGES, model, teacher=str(teacher), **SMALL)
        return tensors(model, "checkpoint")

    def run_build() -> dict[str, Any]:
        with scrd_fast.build_engine(model, engine, device="cpu", precision="fp32", buckets=(1,),
                                    limits=Limits(score_error=1e-3), images=IMAGES) as built:
            return asdict(built.manifest.fidelity.report)

    def run_score() -> list[bytes]:
        with scrd_fast.load_engine(engine, verify=True) as loaded:
            batches = (IMAGES, torch.from_numpy(IMAGES), [IMAGES[0], torch.from_numpy(IMAGES[1])],
                       (IMAGES / 255).astype(np.float32))
            return [loaded.score(batch).maps.tobytes() for batch in batches]

    def run_calibrate() -> float:
        return scrd_fast.calibrate(engine, IMAGES, fpr=0.1).threshold

    def run_load() -> dict[str, torch.Tensor]:
        return load_checkpoint(model).model.state_dict()

    keep("pretrain_teacher", run_pretrain)
    keep("train", run_train)
    keep("load_checkpoint", run_load)
    keep("export_onnx", lambda: scrd_fast.export_onnx(model, folder / "m.onnx").read_bytes())
    keep("build_engine", run_build)
    keep("score", run_score)
    keep("calibrate", run_calibrate)
    return found


def is_same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(next(iter(a.values())), torch.Tensor):
        return a.keys() == b.keys() and all(
            a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
    return bool(a == b)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, Any]:
    """From an interpreter in which each library is imported for the first time: some draw then."""
    folder = tmp_path_factory.mktemp("plain")
    code = f"""
import pickle, pathlib
from tests.test_torch_state import everything
folder = pathlib.Path({str(folder)!r})
(folder / "found").write_bytes(pickle.dumps(everything(folder / "run")))
"""
    environment = os.environ | {"XDG_STATE_HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=300,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return pickle.loads((folder / "found").read_bytes())


@pytest.fixture(params=["recording nothing", "no device"])
def strange(request):
    """Settings of a caller, many at a time."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if request.param == "recording nothing":
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(True)
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            stack.enter_context(np.errstate(all="raise"))
        else:
            torch.set_default_dtype(torch.float16)
            stack.enter_context(torch.device("meta"))
            stack.enter_context(torch.no_grad())
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_no_setting_of_the_caller_changes_a_result_or_is_changed(strange, expected, tmp_path):
    found = everything(tmp_path / "run")
    assert {name for name in expected if not is_same(expected[name], found[name])} == set()


def test_the_state_is_given_back_after_an_error():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            before = state()
            with pytest.raises(ZeroDivisionError), own_state(), seeded(1):
                float(torch.rand(3)[0]) / 0
            assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_of_a_seed_are_those_of_manual_seed():
    ours = new_model("resnet18", 3).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert is_same(dict(ours), dict(SCRD("resnet18").state_dict()))


def test_a_model_that_is_to_be_loaded_draws_nothing():
    before = torch.get_rng_state()
    model = model_without_weights("resnet18")
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_threads_make_the_models_of_their_seeds_and_leave_the_dtype():
    """All at once, under a default dtype that each of them has to change."""
    expected = {seed: dict(new_model("resnet18", seed).state_dict()) for seed in range(3)}
    torch.set_default_dtype(torch.float64)
    try:
        before = state()
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda seed: (seed, dict(new_model(
                "resnet18", seed).state_dict())), [0, 1, 2] * 2))
        assert state() == before
        assert all(is_same(expected[seed], model) for seed, model in found)
    finally:
        torch.set_default_dtype(torch.float32)


def test_cudnn_settings_of_threads_that_overlap():
    """The last to leave gives back what the first found; each of them sees exact ones inside."""
    cudnn = torch.backends.cudnn
    first_in, second_in, first_out = (Event() for _ in range(3))

    def seen() -> tuple[bool, bool, bool]:
        return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    def first() -> tuple[bool, bool, bool]:
        with exact_convolutions:
            first_in.set()
            assert second_in.wait(10)
            inside = seen()
        first_out.set()
        return inside

    def second() -> tuple[bool, bool, bool]:
        assert first_in.wait(10)
        with exact_convolutions:
            second_in.set()
            assert first_out.wait(10)
            return seen()

    with cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        before = seen()
        with ThreadPoolExecutor(2) as pool:
            found = [each.result() for each in [pool.submit(first), pool.submit(second)]]
        assert found == [(False, True, False)] * 2
        assert seen() == before == (True, False, True)


def test_many_threads_leave_cudnn_as_it_was():
    def use(_: int) -> bool:
        with exact_convolutions:
            return torch.backends.cudnn.deterministic

    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False):
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(use, range(400)))
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (True, False)
