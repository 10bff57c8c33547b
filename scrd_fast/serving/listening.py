"""What all that listens has in common: whom an address lets in, and its certificate."""

import ipaddress
import ssl
from pathlib import Path

from scrd_fast.errors import InputError, expect


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_pair(certificate: Path | None, key: Path | None) -> None:
    """Raise InputError for a certificate without its key, and the other way round."""
    expect((certificate is None) == (key is None), "--tls-cert and --tls-key", "both or none",
           "one")


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Show a certificate to others; raises InputError where its key does not belong to it."""
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError("--tls-cert and --tls-key: expected a certificate and its key in PEM, got:"
                         f" {_reason(error)}") from error


def load_authority(context: ssl.SSLContext, authority: Path) -> None:
    """Trust the certificates of an authority; raises InputError for a file without any."""
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise InputError("--tls-ca: expected certificates of an authority in PEM, got:"
                         f" {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return error.strerror or getattr(error, "reason", None) or "no PEM"
