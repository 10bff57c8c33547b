"""Scale-aware contrastive reverse distillation: train, build an engine, score a batch.

    engine = scrd_fast.build_engine("model.safetensors")
    result = scrd_fast.score(batch)

Importing this package loads nothing heavy: a name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scrd_fast.backends.tensorrt.plan import TensorRtOptions
    from scrd_fast.building.build import build_engine, export_onnx
    from scrd_fast.building.cross_build import cross_build
    from scrd_fast.building.rebuild import rebuild_engine
    from scrd_fast.data.decode.find import read_images
    from scrd_fast.data.decode.image import DecodedImage
    from scrd_fast.data.noise_config import NoiseConfig
    from scrd_fast.data.noise_presets import noise_preset
    from scrd_fast.engine.current import score
    from scrd_fast.engine.engine import Engine, Result
    from scrd_fast.engine.load import load_engine, verify_engine
    from scrd_fast.engine.stream import Scored
    from scrd_fast.errors import ScrdError
    from scrd_fast.evaluation.calibrate import calibrate, monitor
    from scrd_fast.evaluation.evaluate import Evaluation, evaluate
    from scrd_fast.metrics.agreement import Limits
    from scrd_fast.model.published_pickle import convert_published
    from scrd_fast.spec import DecodingRule, Prior, ScoringSpec
    from scrd_fast.timing.bench import Bench, bench
    from scrd_fast.training.config import PretrainConfig, TrainConfig
    from scrd_fast.training.loop import train
    from scrd_fast.training.pretrain import pretrain_teacher
    from scrd_fast.training.prior import PriorReport, fit_prior

__version__ = "0.1.0"

_HOMES = {
    "score": "engine.current",
    "build_engine": "building.build",
    "export_onnx": "building.build",
    "cross_build": "building.cross_build",
    "TensorRtOptions": "backends.tensorrt.plan",
    "Bench": "timing.bench",
    "bench": "timing.bench",
    "calibrate": "evaluation.calibrate",
    "monitor": "evaluation.calibrate",
    "Evaluation": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "load_engine": "engine.load",
    "rebuild_engine": "building.rebuild",
    "verify_engine": "engine.load",
    "DecodedImage": "data.decode.image",
    "DecodingRule": "spec",
    "read_images": "data.decode.find",
    "Engine": "engine.engine",
    "Limits": "metrics.agreement",
    "NoiseConfig": "data.noise_config",
    "noise_preset": "data.noise_presets",
    "Result": "engine.engine",
    "Scored": "engine.stream",
    "ScrdError": "errors",
    "convert_published": "model.published_pickle",
    "Prior": "spec",
    "ScoringSpec": "spec",
    "TrainConfig": "training.config",
    "train": "training.loop",
    "PretrainConfig": "training.config",
    "pretrain_teacher": "training.pretrain",
    "PriorReport": "training.prior",
    "fit_prior": "training.prior",
}

__all__ = [
    "Bench", "DecodedImage", "DecodingRule", "Engine", "Evaluation", "Limits", "NoiseConfig",
    "PretrainConfig", "Prior", "PriorReport", "Result", "Scored", "ScoringSpec", "ScrdError",
    "TensorRtOptions", "TrainConfig", "bench", "build_engine", "calibrate", "convert_published",
    "cross_build", "evaluate", "export_onnx", "fit_prior", "load_engine", "monitor", "noise_preset",
    "pretrain_teacher", "read_images", "rebuild_engine", "score", "train", "verify_engine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scrd_fast' has no attribute {name!r}")
    from scrd_fast.errors import explain_missing

    with explain_missing(f"scrd_fast.{name}"):
        return getattr(import_module(f"scrd_fast.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
