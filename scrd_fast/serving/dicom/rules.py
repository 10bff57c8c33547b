"""Which senders are let in, and which series are scored."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scrd_fast.data.decode.dicom_pixels import read_texts
from scrd_fast.errors import InputError, expect

if TYPE_CHECKING:
    from pydicom import Dataset

#: What a series that is not scored is called by default; case does not count.
LEAVE_OUT = r"localizer|localiser|scout|survey|topogram|phantom"
_DESCRIBED = ("SeriesDescription", "ProtocolName")
_LONGEST_AET = 16
RULE_TAGS = ["Modality", *_DESCRIBED, "PatientName", "PatientID"]


def check_aet(name: str, argument: str) -> str:
    """An application entity title; raises InputError for what is none."""
    expect(0 < len(name.strip()) <= _LONGEST_AET and name.isascii() and name.isprintable()
           and "\\" not in name, argument,
           f"an AE title of 1 to {_LONGEST_AET} ASCII characters", repr(name[:60]))
    return name.strip()


@dataclass(frozen=True)
class Peer:
    """An application entity and where it listens, as AET@HOST:PORT."""

    aet: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, argument: str) -> "Peer":
        """Raises InputError for anything else."""
        found = re.fullmatch(r"([^@]+)@(\[[0-9a-fA-F:.]+\]|[^@:\s]+):(\d{1,5})", text)
        if found is None or not 0 < int(found[3]) < 2**16:
            raise InputError(f"{argument}: expected AET@HOST:PORT, got {text!r}")
        return cls(check_aet(found[1], argument), found[2].strip("[]"), int(found[3]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.aet}@{host}:{self.port}"


@dataclass(frozen=True)
class Allowed:
    """Senders that are let in: pairs of an AE title and the network that it may call from, None for
    any; without pairs everybody is."""

    senders: tuple[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network | None], ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Allowed":
        """Of AET, AET@HOST or AET@NETWORK, as 10.1.0.0/16; raises InputError for anything else."""
        senders: list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network | None]] = []
        for text in texts:
            aet, _, place = text.partition("@")
            check_aet(aet, "--allow")
            if not place:
                senders.append((aet.strip(), None))
                continue
            try:
                senders.append((aet.strip(), ipaddress.ip_network(place, strict=False)))
            except ValueError:
                try:
                    found = {info[4][0] for info in socket.getaddrinfo(place, None)}
                except OSError as error:
                    raise InputError("--allow: expected AET, AET@HOST or AET@NETWORK, got"
                                     f" {text!r}: {error.strerror}") from error
                senders += [(aet.strip(), ipaddress.ip_network(each)) for each in sorted(found)]
        return cls(tuple(senders))

    def lets_in(self, aet: str | None, address: str) -> bool:
        """Whether a sender of this title may call from this address; None for any title."""
        here = ipaddress.ip_address(address)
        if isinstance(here, ipaddress.IPv6Address) and here.ipv4_mapped is not None:
            here = here.ipv4_mapped
        return not self.senders or any(
            aet in (None, title) and (network is None or here in network)
            for title, network in self.senders)


@dataclass(frozen=True)
class SeriesRule:
    """Which series are scored. modalities: empty for all; description: what one of the series'
    description and protocol name must match, None for anything; leave_out: what neither may."""

    modalities: tuple[str, ...] = ()
    description: str | None = None
    leave_out: str = LEAVE_OUT

    def __post_init__(self) -> None:
        for name, pattern in (("--description", self.description), ("--leave-out", self.leave_out)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise InputError(f"{name}: expected a regular expression, got {pattern!r}: {error}"
                                 ) from error

    def refuse(self, header: "Dataset") -> str | None:
        """Why a series is not scored, None where it is; by the header of one of its files, with
        RULE_TAGS. What is told holds no word of the header but its modality."""
        modality = "".join(read_texts(header, "Modality")[:1])
        if self.modalities and modality not in self.modalities:
            # It may be any text, a name among it.
            told = modality if re.fullmatch("[A-Z0-9_]{1,16}", modality) else "not told"
            return f"its modality is {told}, not {' or '.join(self.modalities)}"
        described = [text for keyword in _DESCRIBED for text in read_texts(header, keyword)]
        if self.description is not None and not _matches(self.description, described):
            return "neither description nor protocol matches --description"
        if self.leave_out and _matches(self.leave_out, described):
            return "description or protocol matches --leave-out"
        if _matches("phantom", [text for keyword in ("PatientName", "PatientID")
                                for text in read_texts(header, keyword)]):
            return "a phantom, by the name of its patient"
        return None


def _matches(pattern: str, texts: Sequence[str]) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for text in texts)
