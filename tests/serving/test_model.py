"""A model as the service offers it: its answers, its queue, and what is wrong with requests."""

import asyncio
import time

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import scrd_fast
import scrd_fast.engine.engine
from scrd_fast.errors import EngineFileError, InputError, OverloadedError
from scrd_fast.serving.messages import InferRequest, WantedOutput
from scrd_fast.serving.model import DeadlineError, ServedModel, Terms
from scrd_fast.serving.tensors import DTYPES, Tensor
from tests.support.models import pictures

KINDS = {dtype: name for name, dtype in DTYPES.items()}


def request_of(images, outputs=(), id=""):
    tensor = Tensor("images", KINDS[images.dtype], images.shape, images)
    return InferRequest(id, (tensor,), tuple(map(WantedOutput, outputs)))


def files_of(contents, outputs=()):
    tensor = Tensor("files", "BYTES", (len(contents),), list(contents))
    return InferRequest("", (tensor,), tuple(map(WantedOutput, outputs)))


def run(engine, work, **terms):
    """What `work`, a function of a model, gives on an event loop."""
    async def go():
        # Its own engine: closing the model closes it.
        model = ServedModel("m", "1", scrd_fast.load_engine(engine.path), Terms(**terms))
        try:
            return await work(model)
        finally:
            await model.close()

    return asyncio.run(go())


def values_of(answer):
    return {each.name: each.values for each in answer.outputs}


@pytest.mark.parametrize("images", [
    pictures(3, 64), pictures(2, 50)[..., 0],
    (pictures(2, 64).astype(np.uint16) * 257), (pictures(2, 64) / np.float32(255))],
    ids=["uint8", "grey, another size", "uint16", "float32"])
def test_answers_are_the_engines_bit_for_bit(engine, images):
    expected = engine.score(images)
    answer = run(engine, lambda model: model.infer(
        request_of(images, ["map", "score", "scale_weights"], id="7")))
    assert (answer.id, answer.model_name, answer.model_version) == ("7", "m", "1")
    assert [each.name for each in answer.outputs] == ["map", "score", "scale_weights"]
    values = values_of(answer)
    assert_array_equal(values["score"], expected.scores)
    assert_array_equal(values["map"], expected.maps)
    assert_array_equal(values["scale_weights"], expected.scale_weights)


def test_maps_come_where_they_are_asked_for(engine):
    answer = run(engine, lambda model: model.infer(request_of(pictures(1, 64))))
    assert [each.name for each in answer.outputs] == ["score", "scale_weights", "error"]


@pytest.mark.slow
def test_everyone_gets_their_own(engine):
    """Clients whose requests gather have no other's answers."""
    images = pictures(48, 64, seed=5)
    expected = engine.score(images).scores
    order = np.random.default_rng(0).permutation(16)

    async def ask(model):
        async def client(k):
            await asyncio.sleep(0.001 * (k % 5))
            part = images[3 * k : 3 * k + 3]
            return k, values_of(await model.infer(request_of(part)))["score"]

        return await asyncio.gather(*(client(k) for k in order)), model.engine.executions()

    found, executions = run(engine, ask, gather_for=0.02)
    assert executions < 30  # 48 where nobody gathered
    for k, scores in found:
        # Gathered batches are rounded as batches of another size.
        np.testing.assert_allclose(scores, expected[3 * k : 3 * k + 3], rtol=1e-5)
    assert len(set(np.round(expected, 4))) > 40  # no two of them would do for each other


def test_too_much_is_refused_at_once_and_the_rest_answered(engine):
    images = pictures(40, 64)

    async def ask(model):
        return await asyncio.gather(
            *(model.infer(request_of(images[k : k + 1])) for k in range(40)),
            return_exceptions=True)

    found = run(engine, ask, most_waiting=4)
    refused = [each for each in found if isinstance(each, OverloadedError)]
    assert len(refused) >= 30
    assert "expected at most 4 images waiting" in str(refused[0])
    expected = engine.score(images).scores
    answered = [k for k, each in enumerate(found) if not isinstance(each, Exception)]
    assert len(answered) + len(refused) == 40
    assert answered
    for k in answered:
        np.testing.assert_allclose(values_of(found[k])["score"], expected[k : k + 1], rtol=1e-5)


def test_what_nobody_waits_for_is_dropped(engine):
    async def ask(model):
        tasks = [asyncio.ensure_future(model.infer(request_of(pictures(4, 64)))) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await model.infer(request_of(pictures(1, 64)))  # comes behind all of them
        return found, model.engine.executions(), model.pending

    found, executions, pending = run(engine, ask)
    assert not isinstance(found[0], BaseException)
    assert all(isinstance(each, asyncio.CancelledError) for each in found[1:])
    assert executions <= 5  # what was taken before it was cancelled
    assert pending == 0


@pytest.mark.slow
def test_what_is_dropped_while_it_is_submitted(engine, monkeypatch):
    """A large batch is submitted by a thread, and its client may go meanwhile."""
    submit = scrd_fast.engine.engine.Engine.submit

    def slowly(*arguments, **options):
        time.sleep(0.3)
        return submit(*arguments, **options)

    monkeypatch.setattr(scrd_fast.engine.engine.Engine, "submit", slowly)

    async def ask(model):
        busy = asyncio.ensure_future(model.infer(request_of(pictures(100, 64))))  # over 1 MiB
        await asyncio.sleep(0.1)
        dropped = asyncio.ensure_future(model.infer(request_of(pictures(100, 64))))
        await asyncio.sleep(0.1)
        dropped.cancel()
        await busy
        await model.infer(request_of(pictures(1, 64)))
        return model.engine.executions()

    assert run(engine, ask) < 25 + 25


def test_a_request_that_can_never_be_taken(engine):
    with pytest.raises(InputError, match="inputs: expected at most 8 images in a request, got 9"):
        run(engine, lambda model: model.infer(request_of(pictures(9, 64))), most_waiting=8)


def test_a_file_that_was_written_into_ends_readiness(engine, tmp_path):
    import shutil

    shutil.copy(engine.path, tmp_path / "m.scrd")

    async def ask():
        model = ServedModel("m", "1", scrd_fast.load_engine(tmp_path / "m.scrd"), Terms())
        with (tmp_path / "m.scrd").open("r+b") as file:
            file.write(b"\0")
        try:
            with pytest.raises(EngineFileError):
                await model.infer(request_of(pictures(1, 64)))
        finally:
            await model.close()
        return model.fault

    assert "EngineFileError" in asyncio.run(ask())


@pytest.mark.slow
def test_deadlines(engine):
    async def ask(model):
        before = asyncio.ensure_future(model.infer(request_of(pictures(64, 64))))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineError, match="expected scores within"):
            await model.infer(request_of(pictures(1, 64)), 0.001)
        with pytest.raises(DeadlineError, match="got none left"):
            await model.infer(request_of(pictures(1, 64)), -1.0)
        await before
        return values_of(await model.infer(request_of(pictures(1, 64))))["score"]

    assert_array_equal(run(engine, ask), engine.score(pictures(1, 64)).scores)


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


@pytest.mark.slow
def test_one_corrupt_file_of_a_hundred(engine, tmp_path):
    images = pictures(100, 64, seed=2)
    files = [encode(image, ".png" if i % 2 else ".jpg") for i, image in enumerate(images)]
    files[37] = files[37][:100]
    places = []
    for i, file in enumerate(files):
        places.append(tmp_path / f"{i:03d}")
        places[-1].write_bytes(file)
    expected = engine.score(places)
    values = values_of(run(engine, lambda model: model.infer(files_of(files, [
        "score", "map", "error"]))))
    assert [i for i, error in enumerate(values["error"]) if error] == [37]
    assert str(expected.errors[37]).endswith(values["error"][37].decode())
    assert np.isnan(values["score"][37])
    np.testing.assert_allclose(values["score"], expected.scores, rtol=1e-5)
    np.testing.assert_allclose(values["map"], expected.maps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("content", "error"), [
    (b"", "expected a DICOM, NIfTI, "), (b"hello", "got other content"),
    (encode(pictures(1, 64)[0])[:50], "")])
def test_files_that_are_none(engine, content, error):
    values = values_of(run(engine, lambda model: model.infer(files_of([content]))))
    assert error in values["error"][0].decode()
    assert values["error"][0]
    assert b"/proc" not in values["error"][0]
    assert np.isnan(values["score"]).all()


def test_a_dicom_file(engine):
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    with open(path, "rb") as file:
        content = file.read()
    values = values_of(run(engine, lambda model: model.infer(files_of([content]))))
    assert values["error"] == [b""]
    assert_array_equal(values["score"], engine.score([path]).scores)


def test_files_of_several_images_have_no_single_score(engine):
    nibabel = pytest.importorskip("nibabel")
    volume = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(16, 16, 3)), np.eye(4))
    pages = cv2.imencodemulti(".tiff", list(pictures(2, 64)))[1].tobytes()
    values = values_of(run(engine, lambda model: model.infer(files_of([
        volume.to_bytes(), pages]))))
    assert values["error"][0] == b"expected a picture or DICOM of one image, got NIfTI"
    assert values["error"][1]


ONE = pictures(1, 64)


@pytest.mark.parametrize(("request_", "error"), [
    (InferRequest("", ()), "inputs: expected one, images or files, got 0"),
    (InferRequest("", (Tensor("image", "UINT8", ONE.shape, ONE),)),
     "inputs: expected images or files, got 'image'"),
    (request_of(ONE[:0]), r"images: expected one image at least, got shape \[0, 64, 64, 3\]"),
    (request_of(ONE[0, 0]), r"images: expected UINT8, UINT16, FP32 of shape \[N, H, W\] or .*"
                            r" got UINT8 \[64, 3\]"),
    (request_of(ONE.astype(np.float64)), "images: expected UINT8, UINT16, FP32 .* got FP64"),
    (request_of(ONE.astype(np.float32)), r"images.*\[0, 1\]"),
    (request_of(np.full((1, 8, 8), np.nan, np.float32)), "images: expected finite values, got nan"),
    (request_of(ONE, ["scores"]), "outputs: expected some of score, scale_weights, map, error, got"
                                  " 'scores'"),
    (request_of(ONE, ["score", "score"]), "outputs: expected each once"),
    (InferRequest("", (Tensor("files", "UINT8", ONE.shape, ONE),)),
     r"files: expected BYTES of shape \[N\]"),
])
def test_bad_requests(engine, request_, error):
    with pytest.raises(InputError, match=error):
        run(engine, lambda model: model.infer(request_))


@pytest.mark.slow
def test_closing_answers_what_was_taken(engine):
    async def ask(model):
        taken = [asyncio.ensure_future(model.infer(request_of(pictures(8, 64)))) for _ in range(5)]
        await asyncio.sleep(0)
        await model.close()
        return [task.done() and not task.exception() for task in taken]

    assert all(run(engine, ask))


@pytest.mark.parametrize(("terms", "error"), [
    ({"most_waiting": 0}, "most_waiting"), ({"gather_for": -1}, "gather_for"),
    ({"gather_for": 61}, "gather_for"), ({"most_seconds": 0}, "most_seconds")])
def test_terms(terms, error):
    with pytest.raises(InputError, match=error):
        Terms(**terms)
