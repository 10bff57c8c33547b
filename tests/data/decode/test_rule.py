"""DecodingRule: checked when made, and the same after a way through JSON."""

import json
from dataclasses import asdict

import pytest

from scrd_fast.errors import InputError
from scrd_fast.records import read_record
from scrd_fast.spec import WINDOWS, DecodingRule


@pytest.mark.parametrize("rule", [
    DecodingRule(), DecodingRule("window", "lung"), DecodingRule("window", (-100.5, 300.0)),
    DecodingRule("percentile", percentiles=(0.0, 99.0), plane="coronal", slices=(3, 90)),
    DecodingRule(voi_index=2)])
def test_through_json(rule):
    assert read_record(DecodingRule, json.loads(json.dumps(asdict(rule))), "rule") == rule


@pytest.mark.parametrize(("fields", "name"), [
    ({"intensity": "minmax"}, "intensity"), ({"intensity": None}, "intensity"),
    ({"intensity": "window"}, "window"), ({"window": "brain"}, "window"),
    ({"intensity": "window", "window": "liver"}, "window"),
    ({"intensity": "window", "window": (3.0, 3.0)}, "window"),
    ({"intensity": "window", "window": (float("nan"), 3.0)}, "window"),
    ({"intensity": "window", "window": (0.0, float("inf"))}, "window"),
    ({"intensity": "window", "window": (False, True)}, "window"),
    ({"intensity": "window", "window": (1.0, 2.0, 3.0)}, "window"),
    ({"voi_index": -1}, "voi_index"), ({"voi_index": True}, "voi_index"),
    ({"voi_index": 0.0}, "voi_index"),
    ({"percentiles": (99.0, 1.0)}, "percentiles"), ({"percentiles": (-1.0, 50.0)}, "percentiles"),
    ({"percentiles": (1.0, 100.5)}, "percentiles"),
    ({"plane": "oblique"}, "plane"), ({"plane": 2}, "plane"),
    ({"slices": (4, 4)}, "slices"), ({"slices": (-1, 4)}, "slices"),
    ({"slices": (1.0, 4.0)}, "slices"), ({"slices": 7}, "slices"),
])
def test_refused(fields, name):
    with pytest.raises(InputError, match=f"^rule.{name}: expected "):
        DecodingRule(**fields)


def test_windows_are_centre_and_width():
    assert {name: ((low + high) / 2, high - low) for name, (low, high) in WINDOWS.items()} == {
        "brain": (40, 80), "lung": (-600, 1500), "bone": (400, 1800)}
