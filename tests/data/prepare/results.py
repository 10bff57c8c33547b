"""What preparing a data set wrote."""

import csv
import json


def rows_of(out):
    with (out / "data.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record_of(out):
    return json.loads((out / "prepared.json").read_text())
