"""The kinds of synthetic anomalies by name."""

from scrd_fast.data.anomalies.blend import Blend
from scrd_fast.data.anomalies.blur import Blur
from scrd_fast.data.anomalies.deform import Deform
from scrd_fast.data.anomalies.gaussian import Gaussian
from scrd_fast.data.anomalies.ghost import Ghost
from scrd_fast.data.anomalies.kind import Kind
from scrd_fast.data.anomalies.paste import Paste
from scrd_fast.data.anomalies.perlin import Perlin
from scrd_fast.data.anomalies.shift import Shift
from scrd_fast.data.anomalies.simplex import Simplex

#: In the order of noise_config.KINDS.
KINDS: dict[str, Kind] = {
    "simplex": Simplex(), "perlin": Perlin(), "gaussian": Gaussian(), "shift": Shift(),
    "paste": Paste(), "blend": Blend(), "deform": Deform(), "blur": Blur(), "ghost": Ghost(),
}
