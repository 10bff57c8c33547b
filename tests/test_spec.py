"""ScoringSpec: what it accepts, what it refuses, and its way through JSON."""

import json
import math
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest

from scrd_fast.errors import InputError, ScrdError
from scrd_fast.records import from_mapping
from scrd_fast.reference.normal_map import NormalMap
from scrd_fast.spec import ScoringSpec, decode_values, encode_values
from tests.support.priors import random_prior

OTHER = ScoringSpec(input_size=96, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 0.5), weighting="scale",
                    blur_sigma=0, reduction="max")


@pytest.mark.parametrize("spec", [ScoringSpec(), OTHER])
def test_round_trip_through_json(spec):
    again = ScoringSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)


def test_the_defaults_are_the_published_method():
    assert ScoringSpec().to_dict() == {
        "input_size": 256, "channels": "rgb", "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225), "resize": "bilinear_half_pixel", "weighting": "none",
        "blur_sigma": 4.0, "reduction": "mean",
        "decoding": {"intensity": "voi", "window": None, "voi_index": 0,
                     "percentiles": (0.5, 99.5), "plane": "axial", "slices": None, "volume": None,
                     "exif": True, "most_megapixels": 100},
        "prior": None,
    }


def test_a_spec_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        ScoringSpec().input_size = 64


@pytest.mark.parametrize("name", ScoringSpec().to_dict())
def test_missing_fields(name):
    values = ScoringSpec().to_dict()
    del values[name]
    with pytest.raises(InputError, match=rf"^spec: expected all the fields .*, got none for "
                                         rf"\['{name}'\]$"):
        ScoringSpec.from_dict(values)


def test_unknown_fields():
    values = ScoringSpec().to_dict() | {"gamma": 1, "alpha": 2}
    with pytest.raises(InputError, match=r"^spec: expected only the fields .*, got unknown "
                                         r"\['alpha', 'gamma'\]$"):
        ScoringSpec.from_dict(values)


@pytest.mark.parametrize("values", [None, [], "spec", 3, [["input_size", 256]]])
def test_what_is_no_object(values):
    with pytest.raises(InputError, match=r"^spec: expected a JSON object, got "):
        ScoringSpec.from_dict(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("input_size", v) for v in (0, 31, 33, 250, -32, 4128, 256.0, "256", True, None)],
        *[("mean", v) for v in ((0.5, 0.5), (0.5,) * 4, 0.5, (0.5, 0.5, "0.5"), None, "abc",
                                (0.5, math.nan, 0.5), (math.inf, 0, 0), (True, 0.5, 0.5))],
        *[("std", v) for v in ((0.5, 0.5), (1, 1, 0), (1, -1, 1), (1, 1, math.nan), 1, None)],
        *[("blur_sigma", v) for v in (-0.1, math.nan, math.inf, 64.5, "4", None, True)],
        *[("channels", v) for v in ("bgr", "RGB", None, 3)],
        *[("resize", v) for v in ("nearest", "", None)],
        *[("weighting", v) for v in ("paper", "Scale", None, ["scale"], {})],
        *[("reduction", v) for v in ("min", "", None, ["mean"])],
    ],
)
def test_wrong_values(name, value):
    values = ScoringSpec().to_dict() | {name: value}
    with pytest.raises(InputError, match=rf"^spec\.{name}: expected .*, got "):
        ScoringSpec(**values)
    with pytest.raises(InputError, match=rf"^spec\.{name}(\[\d\])?: expected .*, got "):
        ScoringSpec.from_dict(values)


@pytest.mark.parametrize("name", ["input_size", "blur_sigma", "mean", "std"])
def test_a_json_integer_too_large_for_a_float(name):
    huge = json.loads("1" + "0" * 400)
    values = ScoringSpec().to_dict() | {name: [huge] * 3 if name in ("mean", "std") else huge}
    with pytest.raises(InputError, match=rf"^spec\.{name}(\[0\])?: expected "):
        ScoringSpec.from_dict(values)


@pytest.mark.parametrize(("size", "sigma"), [(32, 8), (32, 0), (4096, 1024), (256, 64)])
def test_the_limits_themselves_are_allowed(size, sigma):
    spec = ScoringSpec(input_size=size, blur_sigma=sigma)
    assert (spec.input_size, spec.blur_sigma) == (size, sigma)


def test_an_input_error_is_a_value_error_and_ours():
    with pytest.raises(ValueError, match=r"^spec.input_size") as caught:
        ScoringSpec(input_size=5)
    assert isinstance(caught.value, ScrdError)


def test_from_mapping_names_the_place():
    @dataclass
    class Pair:
        a: int
        b: tuple[int, ...]

    assert from_mapping(Pair, {"a": 1, "b": [2, 3]}, "pair") == Pair(1, (2, 3))
    with pytest.raises(InputError, match=r"^pair: "):
        from_mapping(Pair, {"a": 1}, "pair")


PRIOR = random_prior(2, (0.1, 0.2))


def test_prior_travels_as_json():
    spec = ScoringSpec(prior=PRIOR)
    assert ScoringSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert PRIOR.describe() == ("normal map of 20 people and 40 images by 2 components of a"
                                " thumbnail, foreground from 0.1 to 0.2")


@pytest.mark.parametrize(("changed", "match"), [
    ({"people": 19}, "prior.people: expected at least 20, and no more than there are images"),
    ({"images": 19}, "prior.people: expected at least 20"),
    ({"people": True}, "prior.people: expected an integer from 0"),
    ({"components": 3}, "prior.values: expected .* bytes of a normal map of 3 components, got"),
    ({"components": 65}, "prior.components: expected an integer from 0 to 64"),
    ({"offset": 0.0}, "prior.offset: expected a number from 0.01"),
    ({"offset": math.nan}, "prior.offset: expected a number from 0.01"),
    ({"foreground": (0.2, 0.1)}, "prior.foreground: expected None or"),
    ({"foreground": 0.1}, "prior.foreground: expected None or"),
    ({"values": "?"}, "prior.values: expected base64"),
    ({"values": "é"}, "prior.values: expected base64"),
    ({"values": 3}, "prior.values: expected a text"),
    ({"values": "", "foreground": None}, "prior: expected a normal map or a foreground"),
    ({"values": ""}, "prior.people: expected 0, as images and components"),
])
def test_prior_that_does_not_fit_is_refused(changed, match):
    with pytest.raises(InputError, match=match):
        replace(PRIOR, **changed)


def test_prior_with_numbers_that_are_not_finite_is_refused():
    values = bytearray(decode_values(PRIOR.values))
    values[:2] = np.array([np.nan], "<f2").tobytes()
    broken = replace(PRIOR, values=encode_values(bytes(values)))
    with pytest.raises(InputError, match=r"prior\.values: expected finite numbers"):
        NormalMap.of(broken)
