"""The service's description for programs: OpenAPI, with the protocol's paths and fields."""

from functools import cache
from typing import Any

from scrd_fast import __version__
from scrd_fast.serving.tensors import BYTES, DTYPES

_TENSOR = {
    "name": {"type": "string", "minLength": 1, "maxLength": 256},
    "datatype": {"type": "string", "enum": [*DTYPES, BYTES]},
    "shape": {"type": "array", "maxItems": 8,
              "items": {"type": "integer", "minimum": 0, "maximum": (1 << 40) - 1}},
    "parameters": {"type": "object"},
    "data": {"type": "array", "items": {}},
}
_NAME = {"type": "string", "minLength": 1, "maxLength": 128}
_METADATA_TENSOR = {
    "type": "object", "required": ["name", "datatype", "shape"],
    "properties": {"name": {"type": "string"}, "datatype": {"type": "string"},
                   "shape": {"type": "array", "items": {"type": "integer"}}}}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_SCHEMAS: dict[str, Any] = {
    "Live": _object(["live"], live={"type": "boolean"}),
    "Ready": _object(["ready"], ready={"type": "boolean"}),
    "ModelReady": _object(["name", "ready"], name=_NAME, ready={"type": "boolean"}),
    "ServerMetadata": _object(
        ["name", "version", "extensions"], name={"type": "string"}, version={"type": "string"},
        extensions={"type": "array", "items": {"type": "string"}}),
    "ModelMetadata": _object(
        ["name", "platform", "inputs", "outputs"], name=_NAME,
        versions={"type": "array", "items": {"type": "string"}}, platform={"type": "string"},
        parameters=_object([], threshold={"type": "number"}, map_scale={
            "type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
        inputs={"type": "array", "items": _METADATA_TENSOR},
        outputs={"type": "array", "items": _METADATA_TENSOR}),
    "InferRequest": _object(
        ["inputs"], id={"type": "string", "maxLength": 256}, parameters={"type": "object"},
        inputs={"type": "array", "minItems": 1, "maxItems": 16,
                "items": _object(["name", "datatype", "shape"], **_TENSOR)},
        outputs={"type": "array", "maxItems": 16, "items": _object(
            ["name"], name=_TENSOR["name"], parameters={"type": "object"})}),
    "InferResponse": _object(
        ["model_name", "outputs"], model_name=_NAME, model_version={"type": "string"},
        id={"type": "string"}, outputs={"type": "array", "items": _object(
            ["name", "datatype", "shape"], **_TENSOR)}),
    "RepositoryIndex": {"type": "array", "items": _object(
        ["name", "state", "reason"], name=_NAME, version={"type": "string"},
        state={"type": "string"}, reason={"type": "string"})},
    "Nothing": {"type": "object"},
    "Error": _object(["error"], error={"type": "string"}),
}


def _answer(schema: str, what: str) -> dict[str, Any]:
    return {"description": what, "content": {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


_ERRORS = {401: "The service's token is missing.", 404: "There is no such model."}


def _operation(name: str, summary: str, answer: str, *, errors: dict[int, str],
               body: str | None = None, is_open: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": name, "summary": summary,
        "responses": {"200": _answer(answer, "What was asked for."),
                      **{str(code): _answer("Error", what) for code, what in errors.items()}}}
    if body is not None:
        found["requestBody"] = {"required": body == "InferRequest", "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}}
    if is_open:
        found["security"] = []
    return found


def _of_model(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    """A path of a model, and the same with its version."""
    def parameter(name: str) -> dict[str, Any]:
        return {"name": name, "in": "path", "required": True, "schema": _NAME}

    versioned = {**operation, "operationId": f"{operation['operationId']}Version"}
    return {
        f"/v2/models/{{model_name}}{path}": {
            "parameters": [parameter("model_name")], method: operation},
        f"/v2/models/{{model_name}}/versions/{{model_version}}{path}": {
            "parameters": [parameter("model_name"), parameter("model_version")],
            method: versioned}}


@cache
def describe() -> dict[str, Any]:
    """The OpenAPI document of every service."""
    token = {401: _ERRORS[401]}
    infer = _operation(
        "modelInfer", "Score images.", "InferResponse", body="InferRequest", errors={
            400: "The request does not fit the model; the message says where.", **_ERRORS,
            408: "The body did not come in time.", 413: "The body is too large.",
            429: "Too much waits; try again after Retry-After.",
            499: "The client hung up.", 503: "The service ends, or the model was unloaded.",
            504: "The deadline was over."})
    change = {**token, 403: "The service was started without --allow-load.",
              404: _ERRORS[404], 500: "The model's file cannot be loaded."}
    ready_errors = {503: "Not yet, or not any more."}
    load, unload = (
        {f"/v2/repository/models/{{model_name}}/{verb}": {
            "parameters": [{"name": "model_name", "in": "path", "required": True,
                            "schema": _NAME}],
            "post": _operation(f"repositoryModel{verb.title()}", what, "Nothing", body="Nothing",
                               errors=change)}}
        for verb, what in (("load", "Load a model's file as it is now."),
                           ("unload", "Let go of a model.")))
    server_ready = _operation("serverReady", "Whether all models answer.", "Ready", errors={},
                              is_open=True)
    server_ready["responses"]["503"] = _answer("Ready", ready_errors[503])
    model_ready = _operation("modelReady", "Whether a model answers.", "ModelReady", errors=_ERRORS)
    model_ready["responses"]["503"] = _answer("ModelReady", ready_errors[503])
    return {
        "openapi": "3.1.0",
        "info": {"title": "scrd_fast: Open Inference Protocol", "version": __version__,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "security": [{}, {"bearer": []}],
        "paths": {
            "/v2/health/live": {"get": _operation(
                "serverLive", "Whether the service runs.", "Live", errors={}, is_open=True)},
            "/v2/health/ready": {"get": server_ready},
            "/v2": {"get": _operation("serverMetadata", "What the service is.", "ServerMetadata",
                                      errors=token)},
            **_of_model("/ready", "get", model_ready),
            **_of_model("", "get", _operation("modelMetadata", "What a model takes and gives.",
                                              "ModelMetadata", errors=_ERRORS)),
            **_of_model("/infer", "post", infer),
            "/v2/repository/index": {"post": _operation(
                "repositoryIndex", "All models and their states.", "RepositoryIndex",
                body="Nothing", errors=token)},
            **load, **unload,
        },
        "components": {"schemas": _SCHEMAS, "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"}}},
    }
