"""Clients that nobody here wrote: Triton's, and schemathesis, which reads our own description."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.support.models import pictures


def client_of(kind, service):
    module = pytest.importorskip(f"tritonclient.{kind}")
    host, port = service.http
    url = f"{host}:{port}" if kind == "http" else service.grpc
    return module, module.InferenceServerClient(url)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritonclient(service, engine, kind):
    module, client = client_of(kind, service)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    options = {} if kind == "http" else {"as_json": True}
    assert client.get_server_metadata(**options)["name"] == "scrd_fast"
    found = client.get_model_metadata("m", **options)
    assert [each["name"] for each in found["outputs"]] == ["score", "scale_weights", "map", "error"]
    for images in (pictures(1, 64, 4), pictures(3, 90, 5), pictures(2, 64, 6)[..., 1],
                   pictures(2, 64, 7) / np.float32(255), pictures(1, 64).astype(np.uint16) * 257):
        expected = engine.score(images)
        given = module.InferInput("images", list(images.shape), {
            "uint8": "UINT8", "uint16": "UINT16", "float32": "FP32"}[images.dtype.name])
        given.set_data_from_numpy(np.ascontiguousarray(images))
        answer = client.infer("m", [given], request_id="r", outputs=[
            module.InferRequestedOutput(name) for name in ("score", "map", "scale_weights")])
        assert_array_equal(answer.as_numpy("score"), expected.scores)
        assert_array_equal(answer.as_numpy("map"), expected.maps)
        assert_array_equal(answer.as_numpy("scale_weights"), expected.scale_weights)
        assert_array_equal(client.infer("m", [given]).as_numpy("score"), expected.scores)
    client.close()


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritonclient_sends_files_and_hears_errors(service, engine, kind, tmp_path):
    import cv2

    module, client = client_of(kind, service)
    utils = pytest.importorskip("tritonclient.utils")
    file = cv2.imencode(".png", pictures(1, 64)[0])[1].tobytes()
    (tmp_path / "a.png").write_bytes(file)
    given = module.InferInput("files", [2], "BYTES")
    given.set_data_from_numpy(np.array([file, b"no image"], np.object_))
    answer = client.infer("m", [given])
    assert_array_equal(answer.as_numpy("score")[:1], engine.score([tmp_path / "a.png"]).scores)
    assert np.isnan(answer.as_numpy("score")[1])
    assert answer.as_numpy("error")[0] == b""
    assert b"got other content" in answer.as_numpy("error")[1]
    with pytest.raises(utils.InferenceServerException, match="model: expected m, got 'x'"):
        client.infer("x", [given])
    client.close()


@pytest.mark.slow
def test_our_description_holds(service):
    """Requests that schemathesis makes of the OpenAPI document are answered as the document says:
    no fault, only statuses and bodies that it names."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    host, port = service.http
    schema = schemathesis.openapi.from_dict(service.ask("GET", "/openapi.json").json)
    seen = set()

    def check(case):
        # Of the model that is served, too: else nearly all answers would be that there is none.
        if case.path_parameters and len(case.path_parameters["model_name"]) % 4:
            case.path_parameters["model_name"] = "m"
            if "model_version" in case.path_parameters:
                case.path_parameters["model_version"] = "1"
        response = case.call(base_url=f"http://{host}:{port}")
        seen.add((case.operation.label, response.status_code))
        # Whether data fits a shape, and both a model, no schema can say.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    settled = settings(max_examples=25, deadline=None, database=None, derandomize=True,
                       phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    for operation in schema.get_all_operations():
        settled(given(case=operation.ok().as_strategy())(check))()
    assert not {status for _, status in seen if status >= 500}
    assert ("GET /v2", 200) in seen
    assert ("POST /v2/models/{model_name}/infer", 400) in seen
    assert len({label for label, _ in seen}) == 12
