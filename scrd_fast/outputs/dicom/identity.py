"""Who makes the objects, what its own codes mean, and how unique identifiers come about."""

import hashlib
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scrd_fast import __version__
from scrd_fast.data.decode.dicom_kind import OWN_NAME
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import manifest_digest
from scrd_fast.errors import expect

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.coding import Code

NAME = OWN_NAME
_LONGEST = 64  # characters of a UID (PS3.5 9.1)
_FEWEST = 20  # of them that tell objects apart: of a million any two agree with p < 1e-7
_SCHEME = "99SCRDFAST"  # 99: of private coding schemes (PS3.16 8.2)
_MEANINGS = {
    "anomaly-map": "Distance of student's from teacher's features",
    "anomaly-score": "Anomaly score of an image",
    "p-value": "Conformal p-value of the anomaly score",
    "decision": "Decision by the anomaly score",
    "anomalous": "Anomalous: the score lies above the threshold",
    "not-anomalous": "Not anomalous: the score is at most the threshold",
}


def code(value: str) -> "Code":
    """A concept that no public scheme has, in the private one of this package."""
    from pydicom.sr.coding import Code

    return Code(value, _SCHEME, _MEANINGS[value])


def describe_scheme() -> "CodingSchemeIdentificationItem":
    """The private coding scheme, for the objects that use it."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(_SCHEME, name="Concepts of scrd-fast",
                                          version=__version__, responsible_organization=NAME)


@dataclass(frozen=True)
class Maker:
    """What makes objects: this version of the package with one engine.

    digest: of the engine's manifest, SHA-256; backbone: of its network, with its
    student unless that is the full one; root: of UIDs, or None.
    """

    digest: str
    backbone: str
    root: str | None
    version: str = __version__

    def make_uid(self, *what: object) -> str:
        """The unique identifier of what these words name, made with this engine and version.

        Without root it is a UUID made from the names (version 5 of RFC 9562) under 2.25 (PS3.5
        B.2); with one, as many digits of a SHA-256 of the names as fit behind it.
        """
        text = "\n".join(map(str, (NAME, self.version, self.digest, *what)))
        if self.root is None:
            return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"
        digits = str(int(hashlib.sha256(text.encode()).hexdigest(), 16))
        return f"{self.root}.{digits[:_LONGEST - len(self.root) - 1]}"

    def identify_algorithm(self, **parameters: str) -> "AlgorithmIdentificationSequence":
        """The Algorithm Identification Macro (PS3.3 10.16)."""
        from highdicom import AlgorithmIdentificationSequence
        from pydicom.sr.codedict import codes

        return AlgorithmIdentificationSequence(
            NAME, codes.cid7162.ArtificialIntelligence, self.version, NAME,
            {"engine_sha256": self.digest, "backbone": self.backbone, **parameters})


def check_root(uid_root: str | None) -> None:
    """Raise InputError where no object identifier can begin with `uid_root`."""
    if uid_root is not None:
        expect(isinstance(uid_root, str) and len(uid_root) <= _LONGEST - _FEWEST - 1
               and re.fullmatch(r"[0-2](\.(0|[1-9]\d*))+", uid_root, re.ASCII) is not None,
               "uid_root", "numbers with dots between, in at most"
               f" {_LONGEST - _FEWEST - 1} characters", repr(uid_root))


def make_maker(engine: Engine, uid_root: str | None) -> Maker:
    """The maker for an engine."""
    return Maker(manifest_digest(engine.manifest), engine.manifest.model.network, uid_root)
