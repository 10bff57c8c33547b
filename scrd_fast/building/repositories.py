"""Model repositories for other servers: the portable graph, laid out and described as they expect.

The graph takes the images as they are and gives scores and maps, so that a client asks such a
server as it asks ours, but for encoded files, p-values and decisions, which the graph has not.
"""

import os
from pathlib import Path

from scrd_fast.building.build import export_onnx
from scrd_fast.errors import expect
from scrd_fast.files import as_path, atomic_write, check_name
from scrd_fast.graph.portable import output_shapes
from scrd_fast.model.checkpoint import load_checkpoint
from scrd_fast.spec import ScoringSpec

LARGEST_BATCH = 64
QUEUE_MICROSECONDS = 2000  # about a tenth of what a batch takes on a CPU
# For OpenVINO Model Server: on CPUs with bf16 OpenVINO computes in that unless it is told.
PLUGIN_CONFIG = '{"INFERENCE_PRECISION_HINT": "f32"}'


def write_triton_repository(checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str], *,
                            name: str | None = None, version: int = 1) -> Path:
    """Write a checkpoint as a model of a Triton Inference Server repository; gives its folder.

    folder/name/config.pbtxt and folder/name/version/model.onnx. The server's onnxruntime backend
    runs it, gathers requests into batches, and on a GPU uses TensorRT. name: by default the
    checkpoint's file name. Files that are there are replaced. Raises CheckpointError, InputError
    and OutputError.
    """
    model = _write_graph(checkpoint, folder, name, version)
    spec = load_checkpoint(as_path(checkpoint, "checkpoint")).spec
    with atomic_write(model / "config.pbtxt") as temporary:
        temporary.write_text(_triton_config(model.name, spec))
    return model


def write_openvino_repository(checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str], *,
                              name: str | None = None, version: int = 1) -> Path:
    """Write a checkpoint as a model of an OpenVINO Model Server repository; gives its folder.

    folder/name/version/model.onnx: the server is told the model's name and folder when it is
    started, and PLUGIN_CONFIG as its `--plugin_config`, and needs no file for that. name and
    errors: as of `write_triton_repository`.
    """
    return _write_graph(checkpoint, folder, name, version)


def _write_graph(checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str],
                 name: str | None, version: int) -> Path:
    source = as_path(checkpoint, "checkpoint")
    name = source.stem if name is None else name
    check_name(name, "name")
    expect(version >= 1, "version", "a number from 1", version)
    model = as_path(folder, "folder") / name
    export_onnx(source, model / str(version) / "model.onnx")
    return model


def _triton_config(name: str, spec: ScoringSpec) -> str:
    """The ModelConfig message of Triton's, as text."""
    outputs = []
    for output, (_, *dims) in output_shapes(spec).items():
        # Of a number per image Triton wants a dimension, which the graph does not have.
        reshape = "" if dims else ", reshape { shape: [ ] }"
        text = ", ".join(map(str, dims or [1]))
        outputs.append(f'  {{ name: "{output}", data_type: TYPE_FP32, dims: [ {text} ]{reshape} }}')
    return "\n".join([
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {LARGEST_BATCH}",
        'input [ { name: "images", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ] } ]',
        "output [", ",\n".join(outputs), "]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}",
        # Used where the server has a GPU.
        'optimization { execution_accelerators { gpu_execution_accelerator: [ { name: "tensorrt" }'
        " ] } }", ""])
