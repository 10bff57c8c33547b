"""The choice of a backend, the network in PyTorch, and how batches are cut: no GPU is needed."""

import re

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.backends.fusion import REWRITES
from scrd_fast.backends.registry import choose_backend, cuda_missing, native_precisions
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.errors import BackendUnavailable, InputError
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.support.models import pictures

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@without_gpu
@pytest.mark.parametrize(("backend", "device", "what"), [
    ("auto", "cuda", "device 'cuda'"), ("auto", "cuda:3", "device 'cuda:3'"),
    ("torch_cuda", "cuda", "device 'cuda'"), ("torch_cuda", None, "backend 'torch_cuda'")])
def test_a_gpu_that_is_not_there(small_path, tmp_path, backend, device, what):
    missing = cuda_missing(device)
    assert missing is not None
    assert re.search("built without CUDA; install a CUDA build|finds no NVIDIA GPU", missing)
    with pytest.raises(BackendUnavailable, match=f"^{what}: {re.escape(missing)}$"):
        choose_backend(backend, device)
    with pytest.raises(BackendUnavailable, match=f"^{what}: "):
        scrd_fast.build_engine(small_path, tmp_path / "m.scrd", backend=backend, device=device)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("backend", "device", "message"), [
    ("auto", "gpu", "device: expected None, 'cpu', 'cuda' or 'cuda:<index>', got 'gpu'"),
    ("auto", "cuda:-1", "device: expected None, 'cpu', 'cuda' or 'cuda:<index>', got 'cuda:-1'"),
    ("openvino", "cuda", "device: expected cpu with backend 'openvino', got 'cuda'"),
    ("torch_eager", "cuda:0", "device: expected cpu with backend 'torch_eager', got 'cuda:0'"),
    ("torch_cuda", "cpu", "device: expected a GPU with backend 'torch_cuda', got 'cpu'")])
def test_devices_that_do_not_fit(backend, device, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        choose_backend(backend, device)


def test_the_cpu_can_be_asked_for():
    assert choose_backend("auto", "cpu") in ("openvino", "torch_eager")


@without_gpu
def test_an_engine_file_made_for_a_gpu(small_file, tmp_path):
    """It says what is missing here, before anything is compiled."""
    from dataclasses import replace

    from scrd_fast.engine.engine_file import read_engine_file, write_engine_file

    path = tmp_path / "m.scrd"
    manifest, members = read_engine_file(small_file)
    write_engine_file(path, replace(manifest, backend="torch_cuda", precision="fp16"), members)
    with pytest.raises(BackendUnavailable, match=r"^backend 'torch_cuda': PyTorch "):
        scrd_fast.load_engine(path)


@pytest.mark.slow
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize(("backbone", "student"), [
    ("resnet18", "full"), ("resnet18", "slim"), ("wide_resnet50_2", "full")])
def test_the_fused_network_is_the_network(backbone, student, features):
    """Fusing is what a GPU gets; its order of sums is the same here, but for rounding."""
    torch.manual_seed(5)
    model, spec = SCRD(backbone, student).eval(), ScoringSpec(input_size=64)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: no two channels alike
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    graph = network_graph(build_graph(model, spec), spec, features=features)
    plain, fused = TorchNetwork(graph, "fp32"), TorchNetwork(graph, "fp32", fuse=True)
    pixels = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(fused.run(pixels), plain.run(pixels), strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    steps = [name for name, _, _ in fused.values(pixels)]
    assert len(steps) < 0.75 * len([name for name, _, _ in plain.values(pixels)])
    ours, theirs = fused.precision_used(), plain.precision_used()
    assert ours["convolutions"] == theirs["convolutions"]
    assert ours["tail"].keys() == theirs["tail"].keys()
    assert all(not name.endswith(".add") for name in steps if name.startswith("network/"))


def test_what_is_rewritten(small):
    """The colours become 8 channels, no shortcut adds a bias in a pass of its own, and the scale
    head is one node."""
    graph = network_graph(build_graph(small.model, small.spec), small.spec, features=True)
    plain, rewritten = (TorchNetwork(graph, "fp32", fuse=True, rewrites=chosen)
                        for chosen in ((), REWRITES))
    def stems(network: TorchNetwork) -> set[int]:
        return {network.weights[node.by_role["weight"]].shape[1] for node in network.nodes
                if node.operator == "FusedConv" and node.inputs[0] == "network_input"}

    def with_bias(network: TorchNetwork) -> int:
        return sum(node.roles == ("x", "weight", "bias") and not node.attributes.get("relu")
                   for node in network.nodes)

    assert (stems(plain), stems(rewritten)) == ({3}, {8})
    # Of a ResNet-18: two shortcuts of the teacher, one of the bottleneck, three of the student.
    assert with_bias(plain) - with_bias(rewritten) == 6
    heads = [sum(node.name.startswith("tail/scale_head.") for node in network.nodes)
             for network in (plain, rewritten)]
    assert heads == [10, 1]
    one = plain.run(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    other = rewritten.run(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    for ours, theirs in zip(other, one, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_a_fused_network_is_tried_before_it_is_taken(small):
    """On the CPU the fused operations are plain ones, which run and keep NaN."""
    pytest.importorskip("triton", reason="the GPU backends need Triton")
    from scrd_fast.backends.torch_cuda import _unusable

    graph = network_graph(build_graph(small.model, small.spec), small.spec, features=True)
    fused = TorchNetwork(graph, "bf16", fuse=True)
    assert _unusable(fused, 64, torch.device("cpu")) is None
    name = [name for name, weight in fused.weights.items() if weight.ndim == 4][5]
    fused.weights[name] = fused.weights[name][:, :1]
    assert "does not run its fused convolutions in bf16" in _unusable(fused, 64,
                                                                      torch.device("cpu"))


@pytest.mark.parametrize(("count", "buckets", "expected"), [
    (1, (1, 8, 32), [(0, 1, 1)]),
    (2, (1, 8, 32), [(0, 2, 8)]),
    (8, (1, 8, 32), [(0, 8, 8)]),
    (9, (1, 8, 32), [(0, 9, 32)]),
    (70, (1, 8, 32), [(0, 32, 32), (32, 32, 32), (64, 6, 8)]),
    (3, (1,), [(0, 1, 1), (1, 1, 1), (2, 1, 1)])])
def test_pieces_of_a_batch(count, buckets, expected):
    pytest.importorskip("triton", reason="the GPU backends need Triton")
    from scrd_fast.backends.cuda import pieces

    assert list(pieces(count, buckets)) == expected


def test_a_layer_that_overflows_in_half_precision(small):
    """fp16 ends at 65504: the layer is named in the precision that was asked for."""
    from scrd_fast.backends.torch_network import first_nonfinite

    graph = build_graph(small.model, small.spec)
    for tensor in graph.graph.initializer:
        if tensor.name.startswith("teacher.layer2.0.conv1"):
            weight = np.frombuffer(tensor.raw_data, np.float32) * 3e6
            tensor.raw_data = weight.astype(np.float32).tobytes()
    pixels = torch.from_numpy(pictures(1, 64)).permute(0, 3, 1, 2) / 255
    assert first_nonfinite(graph, small.spec, pixels, "fp32") is None
    layer = first_nonfinite(graph, small.spec, pixels, "fp16")
    assert layer is not None
    assert layer.startswith("network/teacher.layer2.0.conv1")


@pytest.mark.parametrize("backend", ["openvino", "torch_eager"])
@pytest.mark.parametrize("cap", ["AVX2", "avx512_core"])
def test_a_cap_on_instructions_is_kept(backend, cap, monkeypatch):
    """OpenVINO names bf16 whatever oneDNN may use, and then cannot compile in it."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    before = native_precisions(backend)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert native_precisions(backend) == [p for p in before if p != "bf16"]
