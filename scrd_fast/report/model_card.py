"""What a reader should know of an engine before believing its scores: the model card."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from scrd_fast.engine.manifest import Manifest
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.report.evaluation import FIGURE_NAMES
from scrd_fast.report.templates import Table
from scrd_fast.spec import STRIDES, ScoringSpec

INTENDED_USE = (
    "This model and this report are for research: they show how well the model tells images with"
    " anomalies from the normal images of the kind it was trained on.",
    "It is not a medical device, was not examined as one, and no decision about a patient may rest"
    " on it.")
_TEACHERS = {"imagenet": "were trained on ImageNet", "random": "are random"}
_RULES = {"f1": "with the best F1", "sensitivity": "with the fewest false alarms at a sensitivity"
          " of at least {:g}", "specificity": "with the fewest missed images at a specificity of at"
          " least {:g}"}


@dataclass(frozen=True)
class Section:
    """A part of the card: sentences and tables below a heading."""

    heading: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...] = ()


def list_sections(manifest: Manifest) -> list[Section]:
    """The card of an engine, in the order of reading."""
    return [
        Section("Intended use", INTENDED_USE),
        Section("Limits", tuple(_list_limits(manifest))),
        _describe_training(manifest),
        _describe_scoring(manifest.spec),
        _describe_calibration(manifest.calibration)]


def list_engine_tables(manifest: Manifest) -> list[Table]:
    """What the engine is made of, and where it was built."""
    machine, work = asdict(manifest.machine), manifest.work
    gpu = machine.pop("gpu") or {}
    rows = [(name.replace("_", " "), value) for name, value in machine.items()]
    rows += [(f"GPU, {name.replace('_', ' ')}", value) for name, value in gpu.items()]
    used = [(group, ", ".join(f"{count} in {precision}" for precision, count in counts.items()))
            for group, counts in manifest.precision_used.items()]
    tables = [
        Table("Machine of the build", ("what", "value"), rows),
        Table("Libraries of the build", ("library", "version"), list(manifest.versions.items())),
        Table("Precisions in the compiled graph", ("group", "layers"), used)]
    if work is not None:
        tables.append(Table("Work for one image", ("what", "value"), [
            ("operations of convolutions", f"{work.operations / 1e9:.3g} G"),
            ("of these not in 8 bits though the engine is", f"{work.left_out / 1e9:.3g} G"),
            ("weights", f"{work.weights / 1e6:.3g} M")]))
    return tables


def _list_limits(manifest: Manifest) -> Iterator[str]:
    spec, fidelity = manifest.spec, manifest.fidelity
    yield ("The model knows what is normal from its training images alone. Images of another"
           " scanner, protocol, region of the body or population may score high without an"
           " anomaly; “scrd-fast monitor” tells whether scores have shifted.")
    yield ("It was trained with synthesised anomalies: patches that are changed by chance. Real"
           " anomalies that are unlike them, faint or spread over the image may be missed.")
    sides = [str(spec.input_size // stride) for stride in STRIDES]
    blur = (f" and is blurred with a sigma of {spec.blur_sigma:g} of them"
            if spec.blur_sigma else "")
    yield (f"Images are resized to {spec.input_size} × {spec.input_size} pixels. The map has as"
           f" many pixels{blur}, but is made of distances on grids of {', '.join(sides[:2])} and"
           f" {sides[2]} cells a side: it shows where to look, not the outline of anything.")
    reduction = {"mean": "mean: a small anomaly changes it little",
                 "max": "maximum: one bright spot, an artefact too, decides"}[spec.reduction]
    yield f"The score of an image is its map’s {reduction}."
    if manifest.calibration is not None:
        yield ("p-values and the share of false alarms hold on average over calibrations, for one"
               " image of each patient, and where new images are like those of the calibration."
               " Several images of one patient are alike, so their false alarms come together.")
    found = fidelity.report
    yield (f"The engine computes in {manifest.precision}. On {found.images} probe images its scores"
           f" differ from the reference’s by at most {found.score_error:.2g} of the largest score,"
           f" and {found.flipped:.2%} of decisions were others.")
    if fidelity.emulated:
        yield ("The engine was built without a GPU: these figures are of the precision’s arithmetic"
               " on a CPU. On a GPU it has to reproduce its golden images before it scores.")
    yield ("In this page pictures and maps are small and have 8 bits; scores were computed from the"
           " images themselves.")


def _describe_training(manifest: Manifest) -> Section:
    model, training = manifest.model, manifest.training
    teacher = _TEACHERS.get(model.teacher, f"come from “{model.teacher}”")
    student = ", the student slim: it has half the channels" if model.student == "slim" else ""
    told = f"The backbone is {model.backbone}{student}; the teacher’s weights {teacher}."
    if training is None:
        return Section("Training", (
            told, "The engine file does not tell how the student was trained: the model was"
            " imported, was not trained, or the file is of an older format."))
    images = [(name.replace("_", " "), count) for name, count in training.images.items()]
    figures = [(FIGURE_NAMES.get(name, name.replace("_", " ")), value)
               for name, value in training.figures.items()]
    # Engine files of older versions name the folder of the teacher's file, too.
    options = [(name.replace("_", " "),
                os.path.basename(str(value)) if name == "teacher" else value)
               for name, value in training.options.items()]
    tables = (Table("Images of the training", ("part", "images"), images),
              Table("Validation of the model that was kept", ("figure", "value"), figures),
              Table("Options of the training", ("option", "value"), options))
    return Section("Training", (told,), tuple(each for each in tables if each.rows))


def _describe_scoring(spec: ScoringSpec) -> Section:
    rows = [(name.replace("_", " "), value) for name, value in asdict(spec).items()
            if name not in ("decoding", "prior")]
    rows.append(("prior", None if spec.prior is None else spec.prior.describe()))
    decoding = [(name.replace("_", " "), value)
                for name, value in asdict(spec.decoding).items()]
    return Section("From a file to its score", (
        "Every image went through the same steps, which are part of the engine file.",), (
        Table("Decoding rule", ("field", "value"), decoding),
        Table("Scoring", ("field", "value"), rows)))


def _describe_calibration(decisions: Decisions | None) -> Section:
    if decisions is None:
        return Section("Calibration", (
            "The engine is not calibrated: there are no p-values, and no threshold of its own.",))
    scores = decisions.normal_scores
    target = decisions.target or 0
    how = (f"so that at most a share of {target:g} of normal images lies above it, on average over"
           " calibrations" if decisions.rule == "conformal"
           else _RULES[decisions.rule].format(target))
    told = [f"The threshold is {decisions.threshold:.6g}, chosen {how}.",
            f"It comes from {len(scores)} held-out normal images with scores from {scores[0]:.4g}"
            f" to {scores[-1]:.4g}; the smallest p-value is {1 / (len(scores) + 1):.3g}."]
    if decisions.maps is not None:
        low, high = decisions.maps.scale
        told.append(f"Colours of maps begin at {low:.4g} and are strongest from {high:.4g} on;"
                    f" a pixel is segmented above {decisions.maps.pixel_threshold:.4g}.")
    rows = [(FIGURE_NAMES.get(name, name), *value) for name, value in decisions.report.items()
            if isinstance(value, tuple)]
    tables = (Table("Figures on held-out images that did not choose the threshold",
                    ("figure", "value", "95 % from", "to"), rows),) if rows else ()
    return Section("Calibration", tuple(told), tables)

