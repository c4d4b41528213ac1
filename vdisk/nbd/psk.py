"""Files of pre-shared keys, as GnuTLS' ``psktool`` writes them: ``identity:hexadecimal key``."""

from __future__ import annotations

from vdisk.errors import InvalidRequestError


def parse_keys(text: str) -> dict[str, bytes]:
    """The keys of a file by identity; raises InvalidRequestError that names the line."""
    keys: dict[str, bytes] = {}
    for index, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        identity, _, digits = line.rpartition(":")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if not identity or not key:
            raise InvalidRequestError(f"line {index} of the keys is not 'identity:hexadecimal key'")
        keys[identity] = key
    return keys
