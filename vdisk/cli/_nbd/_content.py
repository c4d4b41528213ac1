"""What an export holds, as file(1) sees it from its first bytes."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from vdisk.cli._nbd._exports import printable
from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from vdisk.nbd.uri import NbdUri
    from vdisk.stores._nbd.tls import TlsSettings

_LOOKED_AT = 128 << 10
"""Bytes: the magic numbers of the usual file systems stand within the first 66 KiB."""

_TIMEOUT = 10.0
"""Seconds for file(1): it is fed by somebody else's server."""


def content_of(uri: NbdUri, tls: TlsSettings) -> str | None:
    """What file(1) says of the export; None where it is not installed, or nothing can be read."""
    from vdisk.stores._nbd.pool import PoolSettings
    from vdisk.stores.nbd import NbdSettings, NbdStore

    settings = NbdSettings(PoolSettings(connections=1), meta_contexts=())
    try:
        with NbdStore(uri, settings=settings, tls=tls) as store:
            data = store.read(0, min(_LOOKED_AT, store.size))
        done = subprocess.run(
            ["file", "--brief", "-"],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=True,
        )
    except (VdiskError, OSError, subprocess.SubprocessError):  # it was only a guess
        return None
    return printable(done.stdout.decode(errors="replace").strip()) or None
