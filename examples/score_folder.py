"""Score all images of a folder, one after the other, and write a table.

    python examples/score_folder.py model.scrd new-images/ scores.csv
"""

import csv
import sys
from pathlib import Path

import scrd_fast

engine_file, folder, table_file = sys.argv[1:]
paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".png", ".jpg", ".tif"))

bad = 0
with (scrd_fast.load_engine(engine_file) as engine,
      open(table_file, "w", newline="", encoding="utf-8") as file):
    table = csv.writer(file)
    table.writerow(["image", "score", "p_value", "anomalous", "error"])
    # A stream holds a few images in memory at a time, however many there are, and reads the next
    # ones while the network works. maps=False: no heat maps (item.map), which saves some time.
    for item in engine.stream(paths, maps=False):
        if item.error is None:
            # Larger is more anomalous. The p-value and the decision are None, and their cells
            # empty, until the engine is calibrated: see calibrate_and_monitor.py.
            table.writerow([item.path, item.score, item.p_value, item.anomalous, ""])
        else:  # a damaged file stops nothing: it says why it has no score
            table.writerow([item.path, "", "", "", item.error])
            bad += 1

print(f"{table_file}: {len(paths) - bad} of {len(paths)} images scored")
sys.exit(1 if bad else 0)
