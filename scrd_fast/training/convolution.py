"""Gradients of convolutions' weights for which no thread waits for another.

In bf16 without AMX, oneDNN's threads wait for each other many times in one call, and spin. Beside
other work that is most of a step: 3 ms for 256 channels at 8 x 8 become 40 to 300 (AMD EPYC, 2
cores). Here each thread computes the gradient of its own output channels, alone. Where OpenMP's
threads soon sleep, as in the command line, that costs 5 % of a step when nothing else runs; where
they spin on, as they do unless the environment says otherwise, they keep these threads from the
cores (20 %), and another training from its own anyway.
"""

import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# With more each would have few channels, which are computed 16 at a time.
_MOST_THREADS = 4
_FEW_TURNS = 10_000  # of 300 000 that GNU's OpenMP spins by itself; the command line asks for 3 000


def part_weight_gradients(model: nn.Module, precision: str) -> None:
    """Let a model's convolutions share their weights' gradient out among threads from now on.

    Only where oneDNN's threads would wait, in bf16 on a CPU without AMX, with 2 to 4 threads, and
    where the environment lets OpenMP's sleep.
    """
    threads = torch.get_num_threads()
    # Nothing is known without this call, which came after PyTorch 2.11.
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    waits = precision == "bf16" and not told.get("amx_bf16", True)
    if waits and 1 < threads <= _MOST_THREADS and _soon_sleep():
        share_weight_gradients(model, threads)


def _soon_sleep() -> bool:
    """Whether the environment tells OpenMP's threads not to spin for long without work."""
    turns = os.environ.get("GOMP_SPINCOUNT", "")
    return os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE" or (
        turns.isdecimal() and int(turns) <= _FEW_TURNS)


def share_weight_gradients(model: nn.Module, threads: int) -> None:
    """Let so many threads of their own compute the gradients of a model's convolutions."""
    pool = _pool_of_single_threads(threads)
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.forward = partial(  # type: ignore[method-assign]
                _convolve, part, pool, threads)


def _pool_of_single_threads(count: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch computes with that thread alone."""
    all_here = threading.Barrier(count + 1)

    def be_alone() -> None:
        torch.get_num_threads()  # after the first look the number is the thread's own
        torch.set_num_threads(1)
        all_here.wait()

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "gradients", be_alone)
    for _ in range(count):
        pool.submit(int)
    all_here.wait()
    torch.set_num_threads(before)  # of threads that come later
    return pool


def _convolve(
    conv: nn.Conv2d | nn.ConvTranspose2d, pool: Executor, parts: int, images: Tensor
) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    result: Tensor = _Convolution.apply(
        images.to(dtype), conv.weight.to(dtype), conv, pool, parts)
    return result if conv.bias is None else result + conv.bias.to(dtype)[:, None, None]


class _Convolution(torch.autograd.Function):
    """A convolution without bias, or a transposed one; the gradient of its weights in parts."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, conv: nn.Conv2d | nn.ConvTranspose2d,
                pool: Executor, parts: int) -> Tensor:
        assert conv.groups == 1
        ctx.save_for_backward(images, weight)
        ctx.pool, ctx.parts, ctx.outputs = pool, parts, 1 if conv.transposed else 0
        ctx.shape = (conv.stride, conv.padding, conv.dilation, conv.transposed,
                     conv.output_padding, 1)
        result: Tensor = torch.ops.aten.convolution(images, weight, None, *ctx.shape)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = (saved.detach() for saved in ctx.saved_tensors)

        def differentiate(gradient: Tensor, weight: Tensor, of: int) -> Tensor:
            found: Tensor = torch.ops.aten.convolution_backward(
                gradient.contiguous(memory_format=torch.channels_last), images, weight, None,
                *ctx.shape, [of == 0, of == 1, False])[of]
            return found

        of_images = differentiate(gradient, weight, 0) if ctx.needs_input_grad[0] else None
        of_weight = ctx.pool.map(
            differentiate, gradient.chunk(ctx.parts, 1), weight.chunk(ctx.parts, ctx.outputs),
            [1] * ctx.parts)
        return of_images, torch.cat(list(of_weight), ctx.outputs), None, None, None
