"""Any text: a place that survives being written and read, or a VdiskError; ≤ 256 MiB, ≤ 2 s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.text import change_text
from vdisk.errors import VdiskError
from vdisk.nbd.uri import is_nbd_uri, parse_uri
from vdisk.stores._nbd.address import parse_name

if TYPE_CHECKING:
    import random

LONGEST = 512
_TOKENS = """nbd:// nbds:// nbd+unix:// nbd+vsock:// nbds+unix:/// ://  : / // ? & = @ % %00 %2f
    %C3 %c3%a9 [::1] [fe80::1%25eth0] localhost :10809 :0 :65536 socket= tls-type=psk tls-type=x509
    tls-hostname= tls-verify-peer=0 tls-certificates= tls-psk-file= x-own=1 nbd: nbd:unix:
    :exportname= unix: é [ ] # + ; 4294967296"""
TOKENS = _TOKENS.split()


def seeds() -> dict[str, bytes]:
    texts = [
        "nbd://localhost",
        "nbd://user@host:1/export%20name",
        "nbds://[::1]:10810/a/b?tls-type=x509&tls-hostname=h&tls-verify-peer=0",
        "nbd+unix:///name?socket=/run/nbd.sock&x-own=1",
        "nbd+vsock://2:10809/name",
        "nbd:localhost:10809:exportname=name",
        "nbd:unix:/run/nbd.sock:exportname=name",
    ]
    return {f"{number}": text.encode() for number, text in enumerate(texts)}


def mutate(data: bytes, rng: random.Random) -> bytes:
    return change_text(data, TOKENS, rng)


def run(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        place = parse_name(text)
    except VdiskError:
        place = None
    if place is not None:
        assert parse_name(str(place)) == place
    if is_nbd_uri(text):
        try:
            uri = parse_uri(text)
        except VdiskError:
            return
        assert parse_uri(str(uri)) == uri
