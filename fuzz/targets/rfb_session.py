"""Any VNC client: events and an RfbProtocolError at worst, however cut; ≤ 256 MiB, ≤ 2 s.

Input: a byte of settings, a byte that says how the stream is cut, and all that a client sends.
What a client has sent is not kept, and pixels in whatever format it asks for are whole.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from fuzz.mutate import Field, Means, change_bytes, change_fields
from vdisk.vm.display.base import Frame
from vdisk.vm.display.rfb import session, wire
from vdisk.vm.display.rfb.encodings import Encoder
from vdisk.vm.display.rfb.pixels import NATIVE
from vdisk.vm.display.rfb.session import RfbSession
from vdisk.vm.display.rfb.wire import Rect, RfbProtocolError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

LONGEST = 2048
_KEPT = 8192
"""Bytes of an unfinished message, at most: the longest SetEncodings and SetDesktopSize."""
_FRAME = Frame(70, 20, bytes(range(256)) * 21 + bytes(224))
_CHALLENGE = bytes(16)
_HELLO = b"RFB 003.008\n\1\1"


def seeds() -> dict[str, bytes]:
    formats = pack(">BBBBHHHBBBxxx", 16, 16, 0, 1, 31, 63, 31, 11, 5, 0)
    everything = b"".join(
        [
            b"\0\0\0\0" + formats,
            pack(">BxH5i", 2, 5, 7, 16, -223, -308, -258),
            pack(">BBHHHH", 3, 0, 0, 0, 70, 20),
            pack(">BBxxI", 4, 1, 0x41),
            pack(">BBHII", 255, 0, 1, 0x41, 0x1E),
            pack(">BBHH", 5, 1, 10, 20),
            pack(">BxxxI", 6, 5) + b"hello",
            pack(">BxHHBx", 251, 800, 600, 1) + bytes(16),
        ]
    )
    encodings = [pack(">BxHi", 2, 1, one) for one in (0, 5, 6, 7, 16)]
    request = pack(">BBHHHH", 3, 1, 0, 0, 70, 20)
    return {
        "everything": b"\0\0" + _HELLO + everything,
        "3.3": b"\0\0RFB 003.003\n\1" + everything,
        "password": b"\1\0RFB 003.008\n\2" + bytes(16) + b"\1" + everything,
        "native": b"\0\0" + _HELLO + b"\0\0\0\0" + NATIVE.pack() + request,
        "encodings": b"\0\0" + _HELLO + b"".join(one + request for one in encodings),
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    if rng.random() < 0.5:
        change_bytes(changed, rng, 4)
    else:
        size = rng.choice([1, 2, 4])
        fields = [Field(at, size, Means.COUNT) for at in range(len(data) - size + 1)]
        change_fields(changed, {"stream": fields}, rng, 4)
    return bytes(changed)


def _pieces(stream: bytes, cut: int) -> Iterator[bytes]:
    step = cut or len(stream) or 1
    for start in range(0, len(stream), step):
        yield stream[start : start + step]


def run(data: bytes) -> None:
    settings, cut = data.ljust(2, b"\0")[:2]
    whole = _converse(data[2:], settings, 0)
    if cut:
        assert _converse(data[2:], settings, cut) == whole


def _converse(stream: bytes, settings: int, cut: int) -> tuple[list[session.Event], bytes]:
    """The events, and what was sent."""
    check = (lambda _challenge, response: response == bytes(16)) if settings & 1 else None
    machine = RfbSession(challenge=_CHALLENGE, check=check)
    encoder = Encoder()
    events: list[session.Event] = []
    sent = b""
    try:
        for piece in _pieces(stream, cut):
            machine.receive_data(piece)
            assert len(machine._buffer) <= _KEPT
            _take(machine, encoder, events)
            sent += machine.data_to_send()
    except RfbProtocolError as error:
        _take(machine, encoder, events)
        sent += machine.data_to_send() + str(error).encode()
    return events, sent


def _take(machine: RfbSession, encoder: Encoder, events: list[session.Event]) -> None:
    while (event := machine.next_event()) is not None:
        events.append(event)
        match event:
            case session.PixelFormatWanted(wanted):
                encoder.format = wanted
                assert len(wanted.convert(_FRAME.pixels)) == 70 * 20 * wanted.size
            case session.EncodingsWanted(encodings):
                encoder.choose(encodings)
            case session.UpdateRequest() if len(events) < 20:
                for one in encoder.encode(_FRAME, Rect(0, 0, 70, 20)):
                    assert wire.RECTANGLE.unpack_from(one)[4] == encoder.encoding
