"""The manifest: what an engine file says of itself, typed to the leaves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from scrd_fast.backends.tensorrt.plan import PlanTies
from scrd_fast.errors import EngineFileError, InputError, expect
from scrd_fast.machine import Machine
from scrd_fast.metrics.agreement import Limits, Report
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.model.backbones import describe_network
from scrd_fast.records import read_record
from scrd_fast.spec import DecodingRule, ScoringSpec

FORMAT = 7
READABLE = (1, 2, 3, 4, 5, 6, FORMAT)
LARGEST_BATCH = 1024
MOST_BUCKETS = 16  # each is compiled on its own


@dataclass(frozen=True)
class Model:
    """backbone, student: their names; teacher: where its weights came from."""

    backbone: str
    teacher: str
    student: str = "full"

    @property
    def network(self) -> str:
        """The backbone, and the student unless it is the full one."""
        return describe_network(self.backbone, self.student)


@dataclass(frozen=True)
class Training:
    """How a model was trained, as its checkpoint tells it.

    options: of TrainConfig by name, those inside of another as "noise.strength"; figures: of the
    validation whose model was kept; images: how many, by what they were for.
    """

    options: Mapping[str, bool | int | float | str | None]
    figures: Mapping[str, float]
    images: Mapping[str, int]


@dataclass(frozen=True)
class Attempt:
    """What became of a precision: milliseconds per image and figures, and why it was not taken.

    The milliseconds of all are of one moment: each was timed in turn with the fastest so far, and
    what was timed before follows that one's speed.
    """

    precision: str
    ms: float | None = None
    report: Report | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class SearchTry:
    """One candidate of the search for layers that int8 leaves out: what it keeps unquantised, its
    milliseconds per image, its figures."""

    keep: tuple[str, ...]
    ms: float
    report: Report


@dataclass(frozen=True)
class SearchRecord:
    """How the layers that int8 leaves out were found.

    keep: beginnings of their names; sensitivities: largest relative score error by block, that
    block quantised alone, empty where nothing had to be kept; tries: in their order.
    """

    keep: tuple[str, ...]
    sensitivities: Mapping[str, float]
    tries: tuple[SearchTry, ...]


@dataclass(frozen=True)
class Fidelity:
    """How well the engine gave the reference's scores when it was built.

    probe: what it was judged on, "images" (the user's) or "golden" (generated); report: its
    figures; limits: that they kept; candidates: all precisions that were tried; search: of int8;
    emulated: not the engine was judged, which needs a GPU that was not there, but its precision's
    arithmetic on a CPU.
    """

    probe: str
    report: Report
    limits: Limits
    candidates: tuple[Attempt, ...] = ()
    search: SearchRecord | None = None
    emulated: bool = False


@dataclass(frozen=True)
class Work:
    """What the network has to do for one image.

    operations: of its convolutions in the engine's precision, a multiplication and an addition
    being two; left_out: of those that 8 bits leave out; weights: how many there are.
    """

    operations: float
    left_out: float
    weights: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            expect(value >= 0, f"work.{name}", "a number from 0", value)


@dataclass(frozen=True)
class Manifest:
    """What an engine file says of itself.

    backend and precision: as built; precision_used: counts of layers per group and precision, read
    from the compiled graph; buckets: batch sizes, a batch is cut into the largest that fit;
    machine: that it was built on; versions: of the libraries used; work: None in files of format 1;
    training: None of imported models and in files before format 4; plan: what a compiled TensorRT
    plan is tied to; calibration: of decisions, None before it was done; members: SHA-256 of the
    file's other members by name.
    """

    spec: ScoringSpec
    model: Model
    backend: str
    precision: str
    precision_used: Mapping[str, Mapping[str, int]]
    buckets: tuple[int, ...]
    machine: Machine
    versions: Mapping[str, str]
    fidelity: Fidelity
    work: Work | None = None
    training: Training | None = None
    plan: PlanTies | None = None
    calibration: Decisions | None = None
    members: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


def are_buckets(value: Any) -> bool:
    """Whether these are batch sizes rising from 1, few enough."""
    return (isinstance(value, tuple | list) and all(type(b) is int for b in value)
            and list(value[:1]) == [1] and list(value) == sorted(set(value))
            and value[-1] <= LARGEST_BATCH and len(value) <= MOST_BUCKETS)


def read_manifest(values: Any) -> Manifest:
    """The manifest in JSON values of any format that can be read, as one of today's.

    Raises InputError or EngineFileError that name what does not fit.
    """
    found = values.get("format") if isinstance(values, dict) else None
    if type(found) is not int or found not in READABLE:
        raise EngineFileError(f"expected engine format {FORMAT} or older, got {found!r}; a newer"
                              " scrd_fast may have written it: upgrade, or build it again")
    if found == 1:
        try:
            values = _from_format_1(values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"manifest: expected one of format 1, got another ({error!r})"
                             ) from error
    if found < 3 and isinstance(values.get("spec"), dict):
        # Pictures were all that there was, and they are read as before by default.
        values = values | {"spec": values["spec"] | {"decoding": asdict(DecodingRule())}}
    if found < 4:
        calibration = values.get("calibration")
        if isinstance(calibration, dict):
            calibration = {**calibration, "maps": None}
        values = values | {"training": None, "calibration": calibration}
    if found < 6:
        values = values | {name: {**values[name], **new} for name, new in (
            ("plan", {"targets": []}), ("fidelity", {"emulated": False}))
            if isinstance(values.get(name), dict)}
    if found < 7:
        values = values | {name: {**values[name], **new} for name, new in (
            ("spec", {"prior": None}), ("model", {"student": "full"}))
            if isinstance(values.get(name), dict)}
    values = values | {"format": FORMAT}  # of 4 only the digest at the file's end was another
    return read_record(Manifest, values, "manifest")


# What torch called the instruction sets.
_CAPABILITIES = {"AVX2": "avx2", "AVX512": "avx512"}


def _from_format_1(old: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had figures among their circumstances, and the GPU's among the machine's."""
    values = {k: v for k, v in old.items() if k not in ("fingerprint", "fidelity")}
    machine, fidelity = dict(old["fingerprint"]), dict(old["fidelity"])
    plan = machine.pop("plan", None)
    gpu = {new: machine.pop(name, None) for new, name in (
        ("name", "gpu"), ("compute_capability", "compute_capability"), ("cuda", "cuda"),
        ("cudnn", "cudnn"))}
    capability = machine["cpu_capability"]
    machine |= {"gpu": None if gpu["name"] is None else gpu,
                "cpu_capability": _CAPABILITIES.get(capability, "plain")}
    search = fidelity["search"]
    return values | {
        "format": FORMAT, "machine": machine, "plan": plan, "work": None,
        "fidelity": {
            "probe": fidelity["probe"], "limits": fidelity["limits"], "report": _report(fidelity),
            "candidates": [{"precision": row["precision"], "ms": row["ms"],
                            "why_not": row["why_not"],
                            "report": _report(row) if "score_error" in row else None}
                           for row in fidelity["candidates"]],
            "search": search and {**search, "tries": [
                {"keep": each["keep"], "ms": each["ms"], "report": each["figures"]}
                for each in search["tries"]]}}}


def _report(row: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: row[each.name] for each in fields(Report)}
