"""The extension module called directly: hostile arguments, threads, forks, instruction sets."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from scrd_fast import _native
from scrd_fast.errors import InputError
from tests.support.tolerances import allowed

ROOT = Path(__file__).parent.parent.parent
SHAPES = ((2, 3, 8, 8), (2, 4, 4, 4), (2, 5, 2, 2))


def features(seed: int = 0, dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def weights(n: int = 2) -> np.ndarray:
    return np.tile(np.float32([0.5, 0.25, 0.25]), (n, 1))


def tail(weighted: bool = True) -> _native.Tail:
    return _native.Tail(32, [8, 4, 2], 1.0, weighted)


def run(teacher, student, scale_weights):
    return tail().anomaly_map(teacher, student, scale_weights, True, True)


def replaced(k: int, value: object) -> list[object]:
    return [value if i == k else f for i, f in enumerate(features())]


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    memory[:] = array.reshape(-1).view(np.uint8)
    return memory.view(array.dtype).reshape(array.shape)


SWAPPED = np.dtype(np.float32).newbyteorder()
F0, F1 = features()[:2]
MISFITS = {
    "two maps": (features()[:2], "teacher: expected three feature maps, got 2"),
    "no map": ([], "teacher: expected three feature maps, got 0"),
    "not an array": (replaced(1, [[1.0]]), "teacher[1]: expected a NumPy array, got list"),
    "None": (replaced(2, None), "teacher[2]: expected a NumPy array, got NoneType"),
    "misaligned": (replaced(0, misaligned(F0)),
                   "teacher[0]: expected memory aligned to its dtype, got a misaligned array"),
    "byte order": (replaced(0, F0.astype(SWAPPED)),
                   f"teacher[0]: expected the machine's byte order, got {SWAPPED}"),
    "float64": (replaced(1, F1.astype(np.float64)), "teacher[1]: expected dtype float32, or uint16"
                " with the bits of bfloat16, got float64"),
    "objects": (replaced(1, F1.astype(object)), "teacher[1]: expected dtype float32, or uint16"
                " with the bits of bfloat16, got object"),
    "three dimensions": (replaced(0, F0[0]), "teacher[0]: expected (N, C, h, w), got (3, 8, 8)"),
    "no dimension": (replaced(0, np.array(1, np.float32)),
                     "teacher[0]: expected (N, C, h, w), got ()"),
    "no channel": (replaced(0, F0[:, :0]),
                   "teacher[0]: expected (N, C, h, w) without a zero, got (2, 0, 8, 8)"),
    "no pixel": (replaced(1, F1[:, :, :0]), "teacher[1]: expected (N, C, 4, 4), got (2, 4, 0, 4)"),
    "another side": (replaced(0, F1), "teacher[0]: expected (N, C, 8, 8), got (2, 4, 4, 4)"),
    "another batch": (replaced(1, F1[:1]),
                      "teacher[1]: expected a batch of 2 as at the first scale, got 1"),
    "another dtype": (replaced(1, F1.astype(np.uint16)),
                      "student[1]: expected the teacher's dtype, got another"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_features_that_do_not_fit(case):
    teacher, message = MISFITS[case]
    with pytest.raises(InputError) as caught:
        run(teacher, features(1), weights())
    assert str(caught.value) == message


def test_no_image():
    empty = [f[:0] for f in features()]
    with pytest.raises(InputError, match=r"^teacher\[0\]: expected .* without a zero, got \(0, 3,"):
        run(empty, empty, weights(0))


@pytest.mark.parametrize(("student", "message"), [
    (replaced(2, features()[2][:, :, :, :1]),
     "student[2]: expected (2, 5, 2, 2), got (2, 5, 2, 1)"),
    (replaced(0, F0[:1]), "student[0]: expected (2, 3, 8, 8), got (1, 3, 8, 8)"),
    (replaced(0, F0[:, :2]), "student[0]: expected (2, 3, 8, 8), got (2, 2, 8, 8)"),
])
def test_students_that_do_not_fit(student, message):
    with pytest.raises(InputError) as caught:
        run(features(), student, weights())
    assert str(caught.value) == message


@pytest.mark.parametrize(("given", "message"), [
    (weights(4)[::2], "scale_weights: expected C-contiguous memory, got a strided array"),
    (weights().astype(np.float64),
     "scale_weights: expected float32 (2, 3), got float64 (2, 3)"),
    (weights(3), "scale_weights: expected float32 (2, 3), got float32 (3, 3)"),
    (weights()[:, :2], "scale_weights: expected float32 (2, 3), got float32 (2, 2)"),
    (weights()[0], "scale_weights: expected float32 (2, 3), got float32 (3,)"),
    (misaligned(weights()),
     "scale_weights: expected memory aligned to its dtype, got a misaligned array"),
    (weights().astype(SWAPPED),
     f"scale_weights: expected the machine's byte order, got {SWAPPED}"),
    (2 * weights(), "scale_weights: expected three weights from 0 that sum to 1, got 1.000000,"
                    " 0.500000, 0.500000 for image 0"),
])
def test_weights_that_do_not_fit(given, message):
    with pytest.raises(InputError) as caught:
        run(features(), features(1), given)
    assert str(caught.value) == message


def test_arrays_that_cannot_be_written_are_read():
    expected = run(features(), features(1), weights())
    arrays = [*features(), *features(1), weights()]
    for a in arrays:
        a.setflags(write=False)
    for part, other in zip(run(arrays[:3], arrays[3:6], arrays[6]), expected, strict=True):
        assert np.array_equal(part, other)


def test_negative_and_zero_strides():
    flipped = [f[::-1, ::-1, ::-1, ::-1] for f in features()]
    copies = [f.copy() for f in flipped]
    ones = [as_strided(np.ones(1, np.float32), f.shape, (0, 0, 0, 0)) for f in copies]
    full = [np.ones(f.shape, np.float32) for f in copies]
    for part, expected in zip(run(flipped, ones, weights()), run(copies, full, weights()),
                              strict=True):
        assert np.abs(part - expected).max() <= allowed("anomaly_map", "float32", "native")


def test_more_images_than_memory():
    many = [np.broadcast_to(np.float32(1), (2**45, 1, side, side)) for side in (8, 4, 2)]
    with pytest.raises(InputError, match=r"^scale_weights: expected float32 \(35184372088832, 3\)"):
        run(many, many, weights())


@pytest.mark.parametrize(("arguments", "message"), [
    ((40, [8, 4, 2], 1.0, True), "size: expected a multiple of 16, got 40"),
    ((0, [8, 4, 2], 1.0, True), "size: expected a multiple of 16, got 0"),
    ((2**62, [8, 4, 2], 1.0, True), f"size: expected 1 to 4096, got {2**62}"),
    ((32, [8, 0, 2], 1.0, True), "side: expected 1 to 32, got 0"),
    ((32, [8, 4, 33], 1.0, True), "side: expected 1 to 32, got 33"),
    ((32, [8, 4, 2], -1.0, True), "sigma: expected 0 to 32, got -1.000000"),
    ((32, [8, 4, 2], float("nan"), True), "sigma: expected 0 to 32, got nan"),
])
def test_tails_that_do_not_exist(arguments, message):
    with pytest.raises(InputError) as caught:
        _native.Tail(*arguments)
    assert str(caught.value) == message


def test_wrong_python_types():
    for arguments in ((-32, [8, 4, 2], 1.0, True), (32, [8, 4], 1.0, True), (32, 8, 1.0, True)):
        with pytest.raises(TypeError):
            _native.Tail(*arguments)
    with pytest.raises(TypeError):
        run(features(), features(), [[0.5, 0.25, 0.25]] * 2)
    with pytest.raises(TypeError):
        run(3, features(), weights())


def large(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((3, c, s, s), dtype=np.float32)
            for c, s in ((64, 24), (128, 12), (256, 6))]


def score(teacher, student) -> bytes:
    """Everything that the large features give, as bytes."""
    of_96 = _native.Tail(96, [24, 12, 6], 4.0, True)
    parts = of_96.anomaly_map(teacher, student, weights(3), True, True)
    return b"".join(p.tobytes() for p in parts)


@pytest.mark.usefixtures("keep_threads")
def test_the_number_of_threads_changes_no_bit():
    teacher, student = large(1), large(2)
    results = set()
    for threads in (1, 2, 5):
        _native.set_threads(threads)
        assert _native.threads() == threads
        results |= {score(teacher, student) for _ in range(5)}
    assert len(results) == 1


@pytest.mark.usefixtures("keep_threads")
def test_python_threads_at_once():
    inputs = [(large(s), large(s + 100)) for s in range(6)]
    expected = [score(*given) for given in inputs]
    _native.set_threads(3)
    with ThreadPoolExecutor(6) as callers:
        results = list(callers.map(lambda i: score(*inputs[i % 6]), range(120)))
        swaps = [callers.submit(_native.set_threads, 1 + i % 4) for i in range(20)]
        results += callers.map(lambda i: score(*inputs[i % 6]), range(120))
    assert results == 40 * expected
    assert all(swap.result() is None for swap in swaps)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_numbers_of_threads_out_of_range(threads):
    before = _native.threads()
    with pytest.raises(InputError) as caught:
        _native.set_threads(threads)
    assert str(caught.value) == f"threads: expected 1 to 1024, got {threads}"
    assert _native.threads() == before


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_the_arithmetic_peak(kind):
    """0 where this CPU has no such instruction, else no CPU is that slow."""
    peak = _native.peak_ops(kind, 0.01)
    assert peak == 0 or peak > 1e8


@pytest.mark.parametrize("nbytes", [1, 4099, 2**22])
def test_the_rate_of_copies(nbytes):
    start = time.perf_counter()
    assert _native.copy_rate(nbytes, 0.01) > 1e3
    assert time.perf_counter() - start >= 0.01


@pytest.mark.parametrize(("call", "message"), [
    (lambda: _native.peak_ops("fp64", 0.1), "kind: expected one of fp32, bf16, int8, got 'fp64'"),
    (lambda: _native.peak_ops("fp32", 61),
     "seconds: expected a number above 0, 60 at most, got 61.000000"),
    (lambda: _native.copy_rate(0, 0.1), "nbytes: expected a positive integer, got 0"),
    (lambda: _native.copy_rate(1024, float("nan")),
     "seconds: expected a number above 0, 60 at most, got nan"),
])
def test_measurements_that_make_no_sense(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message


def test_copies_of_what_no_memory_holds():
    with pytest.raises(MemoryError):
        _native.copy_rate(2**62, 0.1)
    with pytest.raises(TypeError):
        _native.copy_rate(-1, 0.1)


def python(code: str, **environment: str) -> str:
    """What the code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, text=True,
                          capture_output=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="no fork and no limits there")

FORK = """
import os, signal, threading
from tests.ops.test_native import _native, large, score
_native.set_threads(3)
teacher, student = large(1), large(2)
expected = score(teacher, student)
stop = False
def work():
    while not stop:
        score(teacher, student)
callers = [threading.Thread(target=work) for _ in range(2)]
for caller in callers:
    caller.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that hangs
        right = score(teacher, student) == expected
        _native.set_threads(2)
        right = right and score(teacher, student) == expected
        os._exit(0 if right else 3)
    print(os.waitpid(child, 0)[1], end=" ")
stop = True
for caller in callers:
    caller.join()
print(score(teacher, student) == expected)
"""


@needs_posix
def test_a_forked_child_computes():
    """The child of a busy parent has none of its threads and perhaps its locked mutex."""
    assert python(FORK) == "0 " * 10 + "True"


FEW_THREADS = """
import resource
from scrd_fast import _native
from scrd_fast.errors import InputError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
_native.set_threads(2)
try:
    _native.set_threads(1024)
except InputError as error:
    print(error)
print(_native.threads())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_threads_that_cannot_be_started():
    """1024 stacks do not fit into 256 MB."""
    assert python(FEW_THREADS).splitlines() == [
        "threads: expected as many as the system can start, got 1024", "2"]


ISA = """
from scrd_fast import _native
from scrd_fast.errors import InputError
try:
    print(_native.isa())
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("isa", _native.isas())
def test_the_environment_chooses_the_instruction_set(isa):
    assert python(ISA, SCRD_FAST_ISA=isa) == isa


def test_without_a_choice_the_fastest_instruction_set_is_used():
    assert python(ISA, SCRD_FAST_ISA="") == _native.isas()[-1]


def test_an_instruction_set_that_does_not_exist():
    assert python(ISA, SCRD_FAST_ISA="nonsense") == (
        "SCRD_FAST_ISA: expected one of plain, neon, avx2, avx512, got 'nonsense'")
    with pytest.raises(InputError, match=r"^isa: expected one of .*, got 'AVX2'$"):
        _native.set_isa("AVX2")


def test_an_instruction_set_that_this_cpu_lacks():
    runs = ", ".join(_native.isas())
    lacks = "avx512" if "neon" in _native.isas() else "neon"
    assert python(ISA, SCRD_FAST_ISA=lacks) == (
        f"SCRD_FAST_ISA: expected one that this CPU runs ({runs}), got {lacks}")


def loss_maps(**changes: object) -> dict[str, object]:
    """Arguments of contrastive_gradient that fit, but for the changes."""
    maps = {name: [f.reshape(2, -1) for f in features(seed)]
            for seed, name in enumerate(("clean", "noisy", "student", "gradients"))}
    return {**maps, "factors": np.ones((2, 3, 3)), **changes}


def flat(k: int, value: object) -> list[object]:
    return [value if i == k else f.reshape(2, -1) for i, f in enumerate(features())]


FLAT = F0.reshape(2, -1)
READ_ONLY = FLAT.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(("changes", "message"), [
    ({"clean": features()}, "clean[0]: expected (N, size), got (2, 3, 8, 8)"),
    ({"clean": flat(1, F1.reshape(2, -1)[:1])}, "clean[1]: expected (2, 64), got (1, 64)"),
    ({"noisy": flat(0, FLAT[:, 1:])}, "noisy[0]: expected (2, 192), got (2, 191)"),
    ({"noisy": flat(0, np.zeros((2, 384), np.float32)[:, ::2])},
     "noisy[0]: expected C-contiguous memory, got a strided array"),
    ({"student": flat(0, FLAT.astype(np.uint16))}, "student[0]: expected float32, got uint16"),
    ({"student": flat(0, FLAT.astype(np.float64))}, "student[0]: expected dtype float32, or uint16"
     " with the bits of bfloat16, got float64"),
    ({"factors": np.ones((2, 3, 2))},
     "factors: expected float64 (2, 3, 3), got float64 (2, 3, 2)"),
    ({"gradients": flat(0, FLAT.astype(np.uint16))},
     "gradients[0]: expected float32 (2, 192), got uint16 (2, 192)"),
    ({"gradients": flat(0, FLAT[:, 1:])},
     "gradients[0]: expected float32 (2, 192), got float32 (2, 191)"),
    ({"gradients": flat(0, READ_ONLY)},
     "gradients[0]: expected C-contiguous memory that can be written, got another"),
])
def test_loss_maps_that_do_not_fit(changes, message):
    with pytest.raises(InputError) as raised:
        _native.contrastive_gradient(**loss_maps(**changes))
    assert str(raised.value) == message
    _native.contrastive_gradient(**loss_maps())


def test_native_order_however_it_is_spelt():
    spelt = F0.view(F0.dtype.newbyteorder("<" if sys.byteorder == "little" else ">"))
    found = run(replaced(0, spelt), features(1), weights())
    for ours, expected in zip(found, run(features(), features(1), weights()), strict=True):
        np.testing.assert_array_equal(ours, expected)
