"""Learn from held-out normal images which scores are anomalous, then decide and watch.

    python examples/calibrate_and_monitor.py model.scrd held-out-normals/ images-of-last-week/
"""

import argparse
import sys
from pathlib import Path

import scrd_fast

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("engine", help="engine file; the calibration is kept in it")
parser.add_argument("held_out", help="folder of normal images that training has not seen")
parser.add_argument("recent", type=Path, help="folder of at least 20 new images (PNG)")
parser.add_argument("--fpr", type=float, default=0.05, help="share of false alarms to allow")
given = parser.parse_args()

# At most this share of new normal images will be called anomalous, on average. It takes at least
# 1 / fpr - 1 images: 19 for 0.05, 99 for 0.01.
decisions = scrd_fast.calibrate(given.engine, given.held_out, fpr=given.fpr)
print(f"anomalous above {decisions.threshold:.6g}")

# An engine that is loaded from now on decides. The smaller a p-value, the less normal the image.
engine = scrd_fast.load_engine(given.engine)
paths = sorted(given.recent.rglob("*.png"))
result = engine.score(paths, maps=False)
if result.errors:  # place of the image in the list -> why it could not be read
    sys.exit("\n".join(result.errors.values()))
for row in zip(paths, result.scores, result.p_values, result.anomalous, strict=True):
    print("{}: score {:.6g}, p-value {:.3f}, anomalous: {}".format(*row))

# Do the recent scores still look like those of the calibration? A new scanner would change them.
drift = scrd_fast.monitor(engine, result)
print(f"changed: {', '.join(drift.drifted)}" if drift.drifted else "no drift")
