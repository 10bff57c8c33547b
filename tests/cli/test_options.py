"""Options that are made of a dataclass's fields: all of them, their defaults, what they give."""

import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from scrd_fast import DecodingRule, NoiseConfig, PretrainConfig, TensorRtOptions, TrainConfig, cli
from scrd_fast.data.noise_config import format_mixture, parse_mixture
from scrd_fast.data.noise_presets import PRESETS, noise_preset
from scrd_fast.errors import InputError
from tests.cli.commands import main

COMMANDS = typer.main.get_command(cli.app).commands
ROOT = Path(__file__).parents[2]

# Another value than the default for each field, as the command line takes it and as it arrives.
NOISE = {
    "--noise-strength": ("0.7", "strength", 0.7),
    "--noise-min-side": ("5", "min_side", 5),
    "--noise-share": ("0.25", "max_share", 0.25),
    "--noise-octaves": ("2", "octaves", 2),
    "--noise-persistence": ("0.3", "persistence", 0.3),
    "--noise-wavelength": ("16", "wavelength", 16.0),
    "--noise-texture": ("shared", "texture", "shared"),
    "--noise-weakest": ("0.5", "weakest", 0.5),
    "--noise-mixture": ("shift=2,paste=0.5", "mixture", (("shift", 2.0), ("paste", 0.5))),
}
DECODING = {
    "--intensity": ("percentile", "intensity", "percentile"),
    "--voi-index": ("1", "voi_index", 1),
    "--percentiles": ("1 99", "percentiles", (1.0, 99.0)),
    "--plane": ("coronal", "plane", "coronal"),
    "--slices": ("3 9", "slices", (3, 9)),
    "--volume": ("2", "volume", 2),
    "--no-exif": ("", "exif", False),
    "--most-megapixels": ("7", "most_megapixels", 7),
}
WINDOW = {"--window": ("0,80", "window", (0.0, 80.0))}  # only with another intensity
BOTH = {
    "--backbone": ("resnet34", "backbone", "resnet34"),
    "--input-size": ("128", "input_size", 128),
    "--steps": ("30", "steps", 30),
    "--batch-size": ("5", "batch_size", 5),
    "--learning-rate": ("0.01", "learning_rate", 0.01),
    "--precision": ("bf16", "precision", "bf16"),
    "--seed": ("7", "seed", 7),
}
TRAIN = {
    **BOTH,
    "--teacher": ("random", "teacher", "random"),
    "--student": ("slim", "student", "slim"),
    "--weighting": ("scale", "weighting", "scale"),
    "--weight-barrier": ("0.3", "weight_barrier", 0.3),
    "--blur-sigma": ("2", "blur_sigma", 2.0),
    "--reduction": ("max", "reduction", "max"),
    "--betas": ("0.9 0.99", "betas", (0.9, 0.99)),
    "--schedule": ("cosine", "schedule", "cosine"),
    "--adapt-noise": ("", "adapt_noise", True),
    "--published-batchnorm": ("", "published_batchnorm", True),
    "--validate-every": ("9", "validate_every", 9),
    "--validation-share": ("0.2", "validation_share", 0.2),
}
PRETRAIN = {
    **BOTH,
    "--coarse-steps": ("4", "coarse_steps", 4),
    "--threshold": ("0.1", "threshold", 0.1),
}
TENSORRT = {
    "--tensorrt-workspace-gb": ("1.5", "workspace_gb", 1.5),
    "--tensorrt-level": ("5", "level", 5),
    "--tensorrt-version-compatible": ("", "version_compatible", True),
    "--tensorrt-hardware-compatible": ("", "hardware_compatible", True),
    "--tensorrt-stripped": ("", "stripped", True),
}
TAIL = {"--tensorrt-tail": ("plugin", "tail", "plugin")}  # not with hardware_compatible
TRAIN_NOISE = NOISE | {"--noise-channels": ("shared", "channels", "shared")}
PRETRAIN_NOISE = NOISE | {"--noise-channels": ("independent", "channels", "independent")}

Options = dict[str, tuple[str, str, object]]


def named(options: Options) -> set[str]:
    return {name for _, name, _ in options.values()}


def plain(kind: type) -> set[str]:
    """The fields that hold no dataclass."""
    default = kind()
    return {f.name for f in fields(kind) if not is_dataclass(getattr(default, f.name))}


@pytest.mark.parametrize(("verb", "kind", "options"), [
    ("train", TrainConfig, TRAIN), ("pretrain-teacher", PretrainConfig, PRETRAIN),
    ("build", TensorRtOptions, TENSORRT | TAIL)])
def test_every_field_is_an_option(verb, kind, options):
    # The test set is what the one that has no option follows from.
    without = {"selection"} if kind is TrainConfig else set()
    assert named(options) | without == plain(kind)
    shows_the_defaults_of(kind(), verb, options)


@pytest.mark.parametrize(("verb", "kind", "options"), [
    ("train", TrainConfig, TRAIN_NOISE), ("pretrain-teacher", PretrainConfig, PRETRAIN_NOISE)])
def test_every_field_of_the_noise_is_an_option(verb, kind, options):
    """With the defaults of the configuration that the noise is part of."""
    assert named(options) == plain(NoiseConfig)
    shows_the_defaults_of(kind().noise, verb, options)


@pytest.mark.parametrize(("verb", "kind"), [
    ("train", TrainConfig), ("pretrain-teacher", PretrainConfig)])
def test_every_field_of_the_decoding_is_an_option(verb, kind):
    assert named(DECODING | WINDOW) == plain(DecodingRule)
    shows_the_defaults_of(kind().decoding, verb, {
        option: each for option, each in DECODING.items() if option != "--no-exif"})


def test_a_published_model_is_told_how_files_are_read(monkeypatch):
    def convert(source, out, *, decoding):
        told.append(decoding)

    told: list[DecodingRule] = []
    monkeypatch.setattr("scrd_fast.model.published_pickle.convert_published", convert)
    assert main("convert", "a.pth", "b.safetensors", "--intensity", "window", "--window",
                "lung") == 0
    assert told == [DecodingRule("window", "lung")]


def test_a_window_is_a_name_or_two_numbers(monkeypatch):
    def run(data, out, *, decoding, **_):
        told.append(decoding)
        raise InputError("end")

    told: list[DecodingRule] = []
    monkeypatch.setattr("scrd_fast.training.loop.train", run)
    for window in ("0,80", "brain", "-1350,150.5"):
        assert main("train", "n", "m", "--intensity", "window", "--window", window) == 2
    assert told == [DecodingRule(intensity="window", window=window)
                    for window in ((0.0, 80.0), "brain", (-1350.0, 150.5))]


def shows_the_defaults_of(default, verb, options):
    text = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "400"}).output
    by_option = {option: each for each in COMMANDS[verb].params for option in each.opts}
    for option, (_, name, other) in options.items():
        value = getattr(default, name)
        assert value != other, f"{name}: this test needs another value than the default"
        if option == "--noise-mixture":
            value = format_mixture(value)
        assert by_option[option].default == value
        assert by_option[option].help
        (line,) = re.findall(rf"^[^\w-]*{option} .*$", text, re.MULTILINE)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert value in (None, False) or f"[default: {shown}]" in line


@pytest.mark.parametrize(("verb", "module", "options", "noise"), [
    ("train", "training.loop.train", TRAIN, TRAIN_NOISE),
    ("pretrain-teacher", "training.pretrain.pretrain_teacher", PRETRAIN, PRETRAIN_NOISE)])
def test_what_an_option_says_arrives(verb, module, options, noise, monkeypatch):
    class EndError(InputError):
        """The verb has told what it was told."""

    def run(data, out, **given):
        told.update(given)
        raise EndError("end")

    told: dict[str, object] = {}
    monkeypatch.setattr(f"scrd_fast.{module}", run)
    line = [word for option, (value, _, _) in (options | noise | DECODING).items()
            for word in (option, *value.split())]
    assert main(verb, "normals", "model.safetensors", *line) == 2
    assert told
    for _, name, value in options.values():
        assert told[name] == value
    assert told["noise"] == NoiseConfig(**{name: value for _, name, value in noise.values()})
    assert told["decoding"] == DecodingRule(**{
        name: value for _, name, value in DECODING.values()})
    assert told["progress"] is True


@pytest.mark.parametrize("options", [TENSORRT, TAIL])
def test_what_the_options_of_tensorrt_say_arrives(options, monkeypatch):
    class EndError(InputError):
        """The verb has told what it was told."""

    def build(checkpoint, out, *, tensorrt, **_):
        told.append(tensorrt)
        raise EndError("end")

    told: list[TensorRtOptions] = []
    monkeypatch.setattr("scrd_fast.building.build.build_engine", build)
    line = [word for option, (value, _, _) in options.items() for word in (option, *value.split())]
    assert main("build", "model.safetensors", *line) == 2
    assert told == [TensorRtOptions(**{name: value for _, name, value in options.values()})]


def test_a_test_set_selects_the_checkpoint(tmp_path, monkeypatch):
    def run(data, out, *, test, selection, **_):
        told.append((len(test[0]), selection))
        raise InputError("end")

    told: list[tuple[int, str]] = []
    for name in ("good", "lesion"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr("scrd_fast.training.loop.train", run)
    assert main("train", "normals", "m.safetensors", "--published-test", tmp_path) == 2
    assert told == [(2, "published_test")]


@pytest.mark.parametrize(("line", "says"), [
    ("train n m --noise-share 2", "noise.max_share: expected above 0, at most 1, got 2.0"),
    ("train n m --noise-octaves 0", "noise.octaves: expected a positive integer, got 0"),
    ("train n m --student thin", "student: expected one of ['full', 'slim'], got 'thin'"),
    ("train n m --betas 0.5 1", "betas: expected two numbers from 0, below 1, got (0.5, 1.0)"),
    ("train n m --learning-rate nan", "learning_rate: expected a finite number from 0, got nan"),
    ("train n m --blur-sigma -1", "spec.blur_sigma: expected a number from 0 to 64, got -1.0"),
    ("pretrain-teacher n m --precision int8",
     "precision: expected one of ['bf16', 'fp16', 'fp32'], got 'int8'"),
    ("pretrain-teacher n m --threshold inf", "threshold: expected a finite number from 0, got inf"),
    ("build m --tensorrt-level 6", "tensorrt.level: expected an integer from 0 to 5, got 6"),
    ("train n m --window x,y", "window: expected LOW,HIGH or one of ('brain', 'lung', 'bone')"),
    ("train n m --window 0,80", "rule.window: expected None, or the intensity 'window' (--inten"),
    ("train n m --slices 9 3", "rule.slices: expected None or (first, one after the last)"),
    ("train n m --betas 0.5", "Option '--betas' requires 2 arguments"),
])
def test_a_wrong_value_is_named(line, says, capfd):
    assert main(*line.split()) == 2
    assert says in capfd.readouterr().err


@pytest.mark.parametrize("kind", [TrainConfig, PretrainConfig, NoiseConfig])
def test_every_field_says_what_it_is(kind):
    for each in fields(kind):
        assert each.metadata["help"], each.name


def shell_lines(text: str) -> list[str]:
    """The lines that begin with the program's name, those that go on in the next one as one."""
    return re.findall(r"^\s*(?:\$ )?(scrd-fast .*)$", text.replace("\\\n", " "), re.MULTILINE)


def written() -> list[str]:
    """Every line for the shell in the verbs' help and in the documents."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = [*(each.epilog for each in COMMANDS.values()), *(p.read_text() for p in documents)]
    return [line for text in texts for line in shell_lines(text)]


def test_written_lines_are_understood():
    """Options that are renamed leave none behind in examples."""
    seen = set()
    for line in written():
        _, verb, *arguments = shlex.split(line, comments=True)
        if verb.startswith("-"):
            continue
        assert COMMANDS[verb].make_context(verb, arguments), line
        seen.add(verb)
    assert seen == set(COMMANDS)


def taken(monkeypatch, verb: str, *line: str) -> NoiseConfig:
    """The law that a verb is called with."""
    def run(data, out, *, noise, **_):
        told.append(noise)
        raise InputError("end")

    told: list[NoiseConfig] = []
    for module in ("loop.train", "pretrain.pretrain_teacher"):
        monkeypatch.setattr(f"scrd_fast.training.{module}", run)
    assert main(verb, "normals", "model.safetensors", *line) == 2
    return told[0]


@pytest.mark.parametrize("verb", ["train", "pretrain-teacher"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_of_the_noise(verb, name, monkeypatch):
    preset = noise_preset(name)
    assert taken(monkeypatch, verb, "--noise-preset", name) == preset != NoiseConfig()


def test_what_is_given_overrides_the_preset(monkeypatch):
    """Even where it is the default's value."""
    line = ["--noise-strength", "0.2", "--noise-preset", "brain-mri", "--noise-mixture", "blur=1"]
    assert taken(monkeypatch, "train", *line) == noise_preset(
        "brain-mri", strength=0.2, mixture=(("blur", 1.0),))


def test_a_mixture_is_written_as_it_is_read():
    for text in ("simplex=1", "shift=3,ghost=0.5", "blur=0,paste=1e-05"):
        assert format_mixture(parse_mixture(text)) == text


@pytest.mark.parametrize(("option", "value", "says"), [
    ("mixture", "lesion=1", "noise.mixture: expected kinds among ('simplex', "),
    ("mixture", "simplex", "noise.mixture: expected KIND=WEIGHT,... of the kinds"),
    ("mixture", "blur=-1", "noise.mixture: expected weights from 0, got blur=-1.0"),
    ("mixture", "blur=nan", "noise.mixture: expected weights from 0, got blur=nan"),
    ("mixture", "blur=0,shift=0", "noise.mixture: expected a weight above 0, got "),
    ("mixture", "blur=1,blur=1", "noise.mixture: expected each kind once, got 'blur' again"),
    ("preset", "x-ray", "noise preset: expected one of ('brain-mri', "),
])
def test_a_wrong_mixture_or_preset_is_one_line(option, value, says, capfd):
    assert main("train", "n", "m", f"--noise-{option}", value) == 2
    told = capfd.readouterr().err
    assert says in " ".join(told.split()).replace("│ ", "")
