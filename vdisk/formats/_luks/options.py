"""The options of ``create -o`` and ``amend -o``: names and defaults are those of qemu-img.

The format ``luks`` takes them as they are, an encrypted qcow2 with ``encrypt.`` before each.
This module only declares them; :mod:`~vdisk.formats._luks.requests` carries them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.formats import CreateOption

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_ITER_TIME = 2000
"""Milliseconds of processor time that deriving a slot's key shall take, as in QEMU."""

CREATE_OPTIONS = (
    CreateOption("key-secret", "string", "id of the secret that holds the passphrase"),
    CreateOption("cipher-alg", "string", "cipher and key size", default="aes-256"),
    CreateOption("cipher-mode", "string", "xts, cbc, ctr or ecb", default="xts"),
    CreateOption("ivgen-alg", "string", "plain64, plain or essiv", default="plain64"),
    CreateOption("ivgen-hash-alg", "string", "hash of the essiv generator (sha256)"),
    CreateOption("hash-alg", "string", "hash of the key derivation", default="sha256"),
    CreateOption(
        "iter-time",
        "number",
        "milliseconds that deriving a key takes",
        default=str(DEFAULT_ITER_TIME),
    ),
)

AMEND_OPTIONS = (
    CreateOption("state", "enum", "what slots become", choices=("active", "inactive")),
    CreateOption("new-secret", "string", "id of the passphrase to add"),
    CreateOption("old-secret", "string", "id of the passphrase to forget"),
    CreateOption("keyslot", "number", "this slot only, 0 to 7"),
    CreateOption("iter-time", "number", "milliseconds that deriving the new key takes"),
)


def prefixed(options: Iterable[CreateOption], prefix: str) -> tuple[CreateOption, ...]:
    """The same options under longer names."""
    return tuple(option._replace(name=prefix + option.name) for option in options)
