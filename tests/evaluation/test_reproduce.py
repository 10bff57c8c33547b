"""reproduce: both protocols on a miniature of a prepared data set; what is there is kept."""

import json
import re
import shutil
from statistics import mean, stdev

import pytest

import scrd_fast
from scrd_fast.data.layouts import read_data_set
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.data.prepare.brain_tumor import BrainTumor
from scrd_fast.data.prepare.download import Sizes
from scrd_fast.data.prepare.run import prepare_as
from scrd_fast.errors import DataError, InputError
from scrd_fast.evaluation.evaluate import evaluate
from scrd_fast.evaluation.reproduce import Outcome, list_rows, reproduce
from scrd_fast.model.checkpoint import load_checkpoint, read_header
from scrd_fast.training import loop
from scrd_fast.training.run import Run
from tests.cli.commands import main
from tests.data.prepare.trees import write_picture

SEEDS = (111, 112)
OPTIONS = {"backbone": "resnet18", "teacher": "random", "input_size": 32, "batch_size": 4,
           "steps": 2, "validate_every": 1, "validation_share": 0.5,
           "noise": NoiseConfig(min_side=4)}
FOLDERS = {"Training/notumor": 44, "Testing/notumor": 6, "Training/glioma": 1,
           "Testing/glioma": 3, "Training/meningioma": 1, "Testing/meningioma": 3,
           "Training/pituitary": 1, "Testing/pituitary": 1}
SHORT = {"notumor": "no", "glioma": "gl", "meningioma": "me", "pituitary": "pi"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, number = tmp_path_factory.mktemp("brain"), 0
    for folder, count in FOLDERS.items():
        part, name = folder.split("/")
        for i in range(count):
            number += 1
            write_picture(root / "download" / folder / f"{part[:2]}-{SHORT[name]}_{i:04}.jpg",
                          number)
    prepare_as(BrainTumor({"version 1": FOLDERS}, Sizes(44, 6, 7)), "brain-tumor",
               root / "download", root / "prepared")
    return root / "prepared"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduced")


@pytest.fixture(scope="module")
def outcomes(data, out):
    return reproduce("brain-tumor", data, out, seeds=SEEDS, progress=False, **OPTIONS)


@pytest.fixture
def no_training(monkeypatch):
    """A step of training is an error."""
    def step(*_):
        raise AssertionError("a step of training")

    monkeypatch.setattr(loop.Trainer, "step", step)


@pytest.mark.slow
def test_each_protocol_trains_and_chooses_as_it_says(out, outcomes):
    assert [(each.protocol, each.seed) for each in outcomes] == [
        ("published", 111), ("held-out", 111), ("published", 112), ("held-out", 112)]
    for each in outcomes:
        folder = out / f"{each.protocol}-{each.seed}"
        trained = load_checkpoint(folder / "model.safetensors")
        images = read_header(folder / "model.state.safetensors", "training state")["images"]
        assert trained.training["seed"] == each.seed
        counts = {name: images[name]["count"] for name in images}
        if each.protocol == "published":
            assert trained.training["selection"] == "published_test"
            assert "auroc_test_used_for_selection" in trained.metrics
            assert counts == {"data": 44, "test": 13}
        else:
            assert trained.training["selection"] == "validation"
            assert counts == {"data": 22, "validation": 22}


@pytest.mark.slow
def test_figures_are_those_of_evaluate(data, out, outcomes):
    normals = [item.path for item in read_data_set(data).normals("train")]
    for each in outcomes[:2]:
        published = each.protocol == "published"
        with scrd_fast.load_engine(out / f"{each.protocol}-111" / "model.scrd") as engine:
            found = evaluate(engine, data)
            figures = {name: figure.value for name, figure in found.parts[0].figures.items()}
            assert (found.parts[0].normal, found.parts[0].anomalous) == (6, 7)
            assert (engine.decisions is None) == published
            names = ("best_f1", "best_accuracy") if published else ("f1", "accuracy")
            assert [each.auc, each.f1, each.acc] == [
                figures[name] for name in ("auroc", *names)]
            if not published:
                assert found.threshold.value == engine.decisions.threshold
                assert len(engine.decisions.normal_scores) == 22
                scores = engine.score(normals, maps=False).scores
                assert set(engine.decisions.normal_scores) <= set(scores.tolist())


@pytest.mark.slow
def test_rows_have_means_and_deviations(outcomes):
    rows = list_rows("brain-tumor", outcomes)
    assert len(rows) == 4
    for row, protocol in zip(rows[2:], ("published", "held-out"), strict=True):
        some = [each for each in outcomes if each.protocol == protocol]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == "brain-tumor"
        assert cells[1].startswith(f"{protocol} (")
        assert ("optimistic" in cells[1]) == (protocol == "published")
        assert cells[2:] == ["2", *(
            f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}" for values in (
                [each.auc for each in some], [each.f1 for each in some],
                [each.acc for each in some]))]
    assert list_rows("x", [Outcome("held-out", 1, 0.5, 0.25, 1.0)])[2].endswith(
        "| 1 | 50.00 | 25.00 | 100.00 |")


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
def test_what_is_there_is_not_done_again(data, out, outcomes, capsys):
    assert reproduce("brain-tumor", data, out, seeds=SEEDS, progress=False, **OPTIONS) == outcomes
    options = [word for name, value in OPTIONS.items() if name != "noise"
               for word in (f"--{name.replace('_', '-')}", value)]
    assert main("reproduce", "brain-tumor", data, "--out", out, "--seeds", 2, "--quiet",
                "--noise-min-side", 4, *options) == 0
    assert capsys.readouterr().out.splitlines() == list_rows("brain-tumor", outcomes)
    assert main("reproduce", "brain-tumor", data, "--out", out, "--seeds", 1, "--quiet",
                "--protocol", "held-out", "--noise-min-side", 4, *options) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
def test_after_a_training_the_rest_is_done_from_its_checkpoint(data, out, outcomes, tmp_path):
    """Labelled validation images change nothing: the held-out protocol's threshold is of normal
    images alone."""
    copy, prepared = tmp_path / "out", tmp_path / "data"
    shutil.copytree(out / "held-out-111", copy / "held-out-111")
    (copy / "held-out-111" / "outcome.json").unlink()
    shutil.copytree(data, prepared)
    rows = []
    for i in range(12):
        write_picture(prepared / "images" / f"v{i}.jpg", 900 + i)
        rows.append(f"images/v{i}.jpg,{i % 2},,,validation,\n")
    with (prepared / "data.csv").open("a") as file:
        file.writelines(rows)
    engine = copy / "held-out-111" / "model.scrd"
    assert evaluate(engine, prepared, pixels=False).threshold.source == "validation"
    assert reproduce("brain-tumor", prepared, copy, seeds=[111], protocols=["held-out"],
                     progress=False, **OPTIONS) == [outcomes[1]]


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on(data, outcomes, tmp_path, monkeypatch):
    """Also where it was stopped before it wrote a checkpoint beside its state."""
    steps = []

    def step(self, number, *arguments):
        steps.append(number)
        return trained(self, number, *arguments)

    def stop(self, *arguments):
        raise KeyboardInterrupt

    trained = loop.Trainer.step
    monkeypatch.setattr(loop.Trainer, "step", step)
    asked = {"seeds": [112], "protocols": ["held-out"], "progress": False, **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            reproduce("brain-tumor", data, tmp_path, **asked)
    assert {path.name for path in (tmp_path / "held-out-112").iterdir()} == {
        "model.state.safetensors", "run.json"}
    with pytest.raises(DataError, match=r"run\.json: expected a run with these images and options,"
                       r" got one with other learning_rate"):
        reproduce("brain-tumor", data, tmp_path, **asked | {"learning_rate": 0.002})
    assert reproduce("brain-tumor", data, tmp_path, **asked) == [outcomes[3]]
    assert steps == [0, 1]


@pytest.fixture
def kept(out, outcomes, tmp_path):
    """A copy of one run without its models."""
    folder = tmp_path / "held-out-111"
    folder.mkdir()
    for name in ("run.json", "outcome.json"):
        shutil.copy(out / "held-out-111" / name, folder)
    return folder / "outcome.json"


def again(data, kept, **options):
    return reproduce("brain-tumor", data, kept.parent.parent, progress=False,
                     **{"seeds": [111], "protocols": ["held-out"], **OPTIONS, **options})


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["outcome.json", "run.json"])
@pytest.mark.parametrize("text", ["", "[3]", "3", "\x00\xff"])
def test_a_damaged_file_is_named(data, kept, name, text):
    path = kept.with_name(name)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"^{path}: expected what an earlier run wrote, got"
                       " another file; remove its folder to do it again"):
        again(data, kept)


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("change", [{"auc": 1.5}, {"auc": None}, {"seed": "111"}, {"more": 1}])
def test_an_outcome_that_is_none_is_named(data, kept, change):
    kept.write_text(json.dumps(json.loads(kept.read_text()) | change))
    with pytest.raises(DataError, match=rf"^{kept}: expected what an earlier run wrote"):
        again(data, kept)


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
def test_a_run_of_something_else_is_refused(data, kept, tmp_path):
    with pytest.raises(DataError, match=r"run\.json: expected a run with these images and options,"
                       " got one with other learning_rate, steps; name another folder"):
        again(data, kept, steps=3, learning_rate=0.01)
    other = tmp_path / "data"
    shutil.copytree(data, other)
    record = json.loads((other / "prepared.json").read_text())
    (other / "prepared.json").write_text(json.dumps(record | {"images_sha256": "0"}))
    with pytest.raises(DataError, match="got one with other images_sha256"):
        again(other, kept)
    (other / "prepared.json").write_text(json.dumps(record | {"data_set": "rsna"}))
    with pytest.raises(DataError, match=f"^{other}: expected the data set brain-tumor, got rsna"):
        again(other, kept)
    for text in ("", "[]", "{}"):
        (other / "prepared.json").write_text(text)
        with pytest.raises(DataError, match="that scrd-fast prepare brain-tumor made"):
            again(other, kept)
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"protocol": "published"}))
    with pytest.raises(DataError, match="expected the outcome of held-out with seed 111, got"
                       " published with 111"):
        again(data, kept)
    kept.parent.rename(kept.parent.with_name("published-111"))
    with pytest.raises(DataError, match="got one with other selection"):
        again(data, kept, protocols=["published"])


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("options", "message"), [
    ({"seeds": []}, "seeds: expected different integers from 0"),
    ({"seeds": [1, 1]}, "seeds: expected different integers"),
    ({"seeds": [-1]}, "seeds: expected different integers"),
    ({"protocols": ["official"]}, "protocols: expected some of"),
    ({"protocols": []}, "protocols: expected some of"),
    ({"seed": 3}, "seed: expected none, as the protocol and seeds say it, got 3"),
    ({"selection": "validation"}, "selection: expected none"),
    ({"stepz": 3}, "reproduce: expected only the fields"),
    ({"validation_share": 0.25}, "validation_share: expected at least 19 of the 44 normal images,"
     " which a false-alarm rate of 0.05 takes, got 11"),
])
def test_bad_arguments_are_found_before_any_training(data, tmp_path, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        reproduce("brain-tumor", data, tmp_path / "out", **OPTIONS | {"progress": False} | options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"^name: expected one of rsna, "):
        reproduce("brats", data, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.usefixtures("outcomes")
def test_a_test_image_that_cannot_be_read_stops_the_run(data, out, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(out / "held-out-111", tmp_path / "out" / "held-out-111")
    (tmp_path / "out" / "held-out-111" / "outcome.json").unlink()
    bad = next(item.path for item in read_data_set(tmp_path / "data").part("test"))
    bad.unlink()  # the download has another link to it
    bad.write_bytes(b"")
    with pytest.raises(DataError, match=rf"^expected a score of each test image, got none of 1:"
                       rf" {bad}"):
        again(tmp_path / "data", tmp_path / "out" / "held-out-111" / "outcome.json")


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main("prepare", "rsna", tmp_path / "empty", tmp_path / "out", "--quiet") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'empty'}")
    assert main("prepare", "brats", tmp_path / "empty", tmp_path / "out", "--quiet") == 2
    assert "name: expected one of rsna, " in capsys.readouterr().err
    assert main("reproduce", "rsna", tmp_path / "empty", "--out", tmp_path / "out") == 2
    assert "expected a folder that scrd-fast prepare rsna made" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
