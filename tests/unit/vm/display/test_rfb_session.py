"""The server's end of RFB as a machine: handshakes of three versions, messages however cut."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.display.rfb import session
from vdisk.vm.display.rfb.auth import PasswordCheck, encrypt
from vdisk.vm.display.rfb.pixels import NATIVE
from vdisk.vm.display.rfb.session import Phase, RfbSession
from vdisk.vm.display.rfb.wire import Rect, RfbProtocolError

CHALLENGE = bytes(range(16))
HELLO = b"RFB 003.008\n\1\1"


def open_session() -> RfbSession:
    machine = RfbSession()
    machine.receive_data(HELLO)
    machine.data_to_send()
    assert machine.next_event() == session.Initialised(shared=True)
    return machine


def events(machine: RfbSession) -> list[Any]:
    return list(iter(machine.next_event, None))


@pytest.mark.parametrize(
    ("version", "answer", "sent"),
    [
        (b"003.003", b"", b"\0\0\0\1"),
        (b"003.005", b"", b"\0\0\0\1"),  # never published: as 3.3
        (b"003.007", b"\1", b"\1\1"),
        (b"003.008", b"\1", b"\1\1\0\0\0\0"),
        (b"003.889", b"\1", b"\1\1\0\0\0\0"),  # Apple's
        (b"005.000", b"\1", b"\1\1\0\0\0\0"),
    ],
)
def test_versions_without_a_password(version: bytes, answer: bytes, sent: bytes) -> None:
    machine = RfbSession()
    machine.receive_data(b"RFB " + version + b"\n" + answer + b"\0")
    assert machine.data_to_send() == b"RFB 003.008\n" + sent
    assert machine.next_event() == session.Initialised(shared=False)
    machine.introduce(640, 400, "vm")
    assert machine.data_to_send() == pack(">HH", 640, 400) + NATIVE.pack() + b"\0\0\0\2vm"


@pytest.mark.parametrize("version", [b"003.003", b"003.007", b"003.008"])
def test_the_right_password(version: bytes) -> None:
    machine = RfbSession(challenge=CHALLENGE, check=PasswordCheck("secret"))
    chosen = b"" if version == b"003.003" else b"\2"
    machine.receive_data(b"RFB " + version + b"\n" + chosen)
    assert machine.data_to_send().endswith(CHALLENGE)
    machine.receive_data(encrypt("secret", CHALLENGE) + b"\1")
    assert machine.data_to_send() == b"\0\0\0\0"
    assert machine.phase is Phase.NORMAL


def test_a_wrong_password_is_told_and_ends() -> None:
    machine = RfbSession(challenge=CHALLENGE, check=PasswordCheck("secret"))
    machine.receive_data(b"RFB 003.008\n\2")
    machine.data_to_send()
    with pytest.raises(RfbProtocolError, match="wrong password"):
        machine.receive_data(encrypt("guess", CHALLENGE))
    assert machine.data_to_send() == b"\0\0\0\1\0\0\0\x0ewrong password"
    with pytest.raises(RfbProtocolError):
        machine.receive_data(b"\1")


def test_a_password_cannot_be_left_out() -> None:
    machine = RfbSession(challenge=CHALLENGE, check=PasswordCheck("secret"))
    with pytest.raises(RfbProtocolError, match="not offered"):
        machine.receive_data(b"RFB 003.008\n\1\1")


def test_the_key_is_eight_bytes_of_the_password() -> None:
    assert encrypt("password1", bytes(16)) == encrypt("password", bytes(16))
    assert encrypt("", bytes(8)).hex() == "8ca64de9c1b123a7"  # DES of zeroes with a key of zeroes


@pytest.mark.parametrize("data", [b"GET / HTTP/1", b"RFB 002.000\n", b"RFB 00a.008\n"])
def test_other_protocols_are_refused(data: bytes) -> None:
    with pytest.raises(RfbProtocolError):
        RfbSession().receive_data(data)


MESSAGES = [
    (b"\0\0\0\0" + NATIVE.pack(), session.PixelFormatWanted(NATIVE)),
    (pack(">BxH3i", 2, 3, 16, 0, -223), session.EncodingsWanted((16, 0, -223))),
    (pack(">BxH", 2, 0), session.EncodingsWanted(())),
    (pack(">BBHHHH", 3, 1, 1, 2, 3, 4), session.UpdateRequest(True, Rect(1, 2, 3, 4))),
    (pack(">BBxxI", 4, 1, 0xFF0D), session.KeyEvent(True, 0xFF0D)),
    (pack(">BBHH", 5, 5, 10, 20), session.PointerEvent(5, 10, 20)),
    (pack(">BxxxI", 6, 5) + b"\4hell", None),
    (pack(">BxHHBx", 251, 800, 600, 1) + bytes(16), session.SizeWanted(800, 600)),
    (pack(">BBHII", 255, 0, 1, 0x61, 0x1E), session.KeyEvent(True, 0x61, 0x1E)),
]


@given(order=st.lists(st.integers(0, len(MESSAGES) - 1), max_size=12), cut=st.integers(1, 40))
def test_any_messages_however_cut(order: list[int], cut: int) -> None:
    machine = open_session()
    stream = b"".join(MESSAGES[number][0] for number in order)
    for start in range(0, len(stream), cut):
        machine.receive_data(stream[start : start + cut])
    wanted = [MESSAGES[number][1] for number in order]
    assert events(machine) == [event for event in wanted if event is not None]


@pytest.mark.parametrize(
    "data",
    [
        b"\1",
        b"\xfe",
        pack(">BxH", 2, 1025),
        pack(">BxxxI", 6, 1 << 31),
        pack(">BB", 255, 1),
        b"\0\0\0\0" + bytes(16),
    ],
)
def test_what_no_client_sends(data: bytes) -> None:
    machine = open_session()
    with pytest.raises(RfbProtocolError):
        machine.receive_data(data)


def test_long_cut_text_is_not_kept() -> None:
    machine = open_session()
    machine.receive_data(pack(">BxxxI", 6, 1 << 20))
    for _ in range(16):
        machine.receive_data(bytes(1 << 16))
        assert len(machine._buffer) == 0
    machine.receive_data(pack(">BBxxI", 4, 0, 65))
    assert events(machine) == [session.KeyEvent(False, 65)]
