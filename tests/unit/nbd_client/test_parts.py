"""The small parts of the client: names, alignment, the journal, messages to the kernel."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError, VdiskError
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, Session
from vdisk.nbd.uri import NbdUri, Transport, parse_uri
from vdisk.nbd.wire import TransmissionFlag
from vdisk.stores._nbd import journal as journal_module
from vdisk.stores._nbd import kernel
from vdisk.stores._nbd.address import describe, from_server_options, open_socket, parse_name
from vdisk.stores._nbd.journal import Journal
from vdisk.stores._nbd.pool import difference
from vdisk.stores._nbd.requests import FLUSH, TRIM, WRITE, Request
from vdisk.stores.alignment import parts
from vdisk.tls import parse_keys

# -- names -----------------------------------------------------------------------------------

NAMES = {
    "nbd:localhost:10809": NbdUri(host="localhost"),
    "nbd:example.com:1234:exportname=a:b": NbdUri(host="example.com", port=1234, export="a:b"),
    "nbd:[::1]:1234": NbdUri(host="::1", port=1234),
    "nbd:unix:/run/nbd.sock": NbdUri(Transport.UNIX, socket="/run/nbd.sock"),
    "nbd:unix:/a:exportname=x y": NbdUri(Transport.UNIX, socket="/a", export="x y"),
    "nbd://host/x": NbdUri(host="host", export="x"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert parse_name(name) == NAMES[name]


@pytest.mark.parametrize("name", ["nbd:", "nbd:host", "nbd:unix:", "nbd:host:port-with-no-name"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_name(name)


def test_server_options() -> None:
    inet = from_server_options({"type": "inet", "host": "h", "port": "1"}, "x")
    assert inet == NbdUri(host="h", port=1, export="x")
    assert from_server_options({"type": "unix", "path": "/s"}, "").socket == "/s"
    vsock = from_server_options({"type": "vsock", "cid": "3", "port": 9}, "")
    assert (vsock.cid, vsock.port) == (3, 9)
    assert [describe(each) for each in (inet, vsock)] == ["h:1", "vsock 3:9"]


def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(VdiskError, match="refused"):
            open_socket(parse_uri(f"nbd://127.0.0.1:{port}"), 5)


def test_keys() -> None:
    assert parse_keys("# comment\nalice:00ff\n\nbob:a:1234\n") == {
        "alice": b"\0\xff",
        "bob:a": b"\x12\x34",
    }
    for text in ("alice", "alice:xyz", ":00", "alice:"):
        with pytest.raises(InvalidRequestError, match="line 1"):
            parse_keys(text)


# -- alignment -------------------------------------------------------------------------------


@given(
    offset=st.integers(0, 1 << 40),
    length=st.integers(1, 1 << 20),
    unit=st.sampled_from([1, 2, 512, 4096, 65536]),
)
def test_parts_cover_a_request_once(offset: int, length: int, unit: int) -> None:
    found = parts(offset, length, unit)
    assert found[0].start == offset
    assert found[-1].end == offset + length
    assert all(one.end == other.start for one, other in itertools.pairwise(found))
    for part in found:
        assert part.block <= part.start < part.end <= part.block_end
        assert part.block % unit == 0
        assert part.block_end % unit == 0
        assert part.whole or part.block_end - part.block == unit


# -- the journal -----------------------------------------------------------------------------


def write(offset: int, data: bytes, **flags: bool) -> Request:
    return Request(WRITE, offset, len(data), memoryview(data), **flags)


def test_the_journal_keeps_copies_in_order_until_a_flush() -> None:
    journal = Journal(keep=True)
    data = bytearray(b"first")
    journal.acknowledged(Request(WRITE, 0, 5, memoryview(data)))
    data[:] = b"later"
    journal.acknowledged(write(3, b"second"))
    flush = Request(FLUSH)
    flush.mark = journal.mark()
    journal.acknowledged(Request(TRIM, 0, 1))  # while the flush is under way
    assert [bytes(each.view or b"") for each in journal.again()] == [b"first", b"second", b""]
    journal.acknowledged(flush)
    assert [each.command for each in journal.again()] == [TRIM]


def test_what_is_written_again_is_not_recorded_again() -> None:
    journal = Journal(keep=True)
    journal.acknowledged(write(0, b"once"))
    for request in journal.again():
        journal.acknowledged(request)
    assert len(list(journal.again())) == 1


def test_stable_writes_are_kept_only_behind_others() -> None:
    journal = Journal(keep=True)
    journal.acknowledged(write(0, b"stable", fua=True))
    assert not list(journal.again())
    journal.acknowledged(write(0, b"not yet"))
    journal.acknowledged(write(0, b"stable", fua=True))
    assert len(list(journal.again())) == 2  # or the first would undo the second


def test_a_journal_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_BYTES", 10)
    journal = Journal(keep=True)
    journal.acknowledged(write(0, b"x" * 10))
    assert not journal.full
    journal.acknowledged(write(0, b"x"))
    assert journal.full


# -- sessions --------------------------------------------------------------------------------


def session(size: int = 1 << 20, **more: object) -> Session:
    return Session(ExportInfo("", size, **more), HeaderStyle.SIMPLE)  # type: ignore[arg-type]


def test_differences_that_matter() -> None:
    flush = TransmissionFlag.NBD_FLAG_SEND_FLUSH
    assert difference(session(), session(flags=flush)) is None
    assert difference(session(), session(size=5)) == "5 bytes, not 1048576"
    assert difference(session(flags=flush), session()) is not None
    read_only = TransmissionFlag.NBD_FLAG_READ_ONLY
    assert difference(session(), session(flags=read_only)) is not None
    small = BlockSizes(512, 4096, 1 << 20)
    assert difference(session(), session(block_sizes=small)) is not None


# -- messages to the kernel ------------------------------------------------------------------


def test_a_netlink_message_byte_by_byte() -> None:
    """As linux/netlink.h and linux/genetlink.h lay it out, on a little-endian machine."""
    name = kernel.attribute(kernel.CTRL_ATTR_FAMILY_NAME, b"nbd\0")
    found = kernel.message(kernel.GENL_ID_CTRL, kernel.CTRL_CMD_GETFAMILY, 7, [name])
    assert found == bytes.fromhex(
        "1c000000"  # length: 28
        "1000 0500 07000000 00000000"  # GENL_ID_CTRL, REQUEST | ACK, sequence, port
        "03 01 0000"  # CTRL_CMD_GETFAMILY, version
        "0800 0200 6e626400"  # CTRL_ATTR_FAMILY_NAME "nbd"
    )


def test_connecting_names_everything() -> None:
    device = kernel.Device(number=3, timeout=30, connections=2)
    words = kernel.connect_attributes(session(), device, [8, 9])
    found = kernel.attributes(b"".join(words))
    assert kernel.U32.unpack(found[kernel.NBD_ATTR_INDEX]) == (3,)
    assert kernel.U64.unpack(found[kernel.NBD_ATTR_SIZE_BYTES]) == (1 << 20,)
    assert kernel.U64.unpack(found[kernel.NBD_ATTR_BLOCK_SIZE_BYTES]) == (512,)
    assert kernel.U64.unpack(found[kernel.NBD_ATTR_TIMEOUT]) == (30,)
    sockets = found[kernel.NBD_ATTR_SOCKETS]
    assert sockets == bytes.fromhex("0c00018008000100080000000c0001800800010009000000")


def test_block_sizes_that_the_kernel_does_not_take() -> None:
    huge = session(block_sizes=BlockSizes(65536, 65536, 1 << 20))
    with pytest.raises(UnsupportedFeatureError):
        kernel.connect_attributes(huge, kernel.Device(), [])
    for size in (100, 256, 3000, 1 << 20):
        with pytest.raises(InvalidRequestError):
            kernel.connect_attributes(session(), kernel.Device(block_size=size), [])


@given(st.binary(max_size=64))
def test_any_answer_is_parsed_or_refused(data: bytes) -> None:
    for parse in (kernel.attributes, lambda data: list(kernel.messages(data))):
        with contextlib.suppress(ValueError):
            parse(data)


def test_messages_one_behind_the_other() -> None:
    one = kernel.message(5, 1, 1, [kernel.attribute(1, b"abc")])
    other = kernel.message(6, 2, 2, [])
    found = list(kernel.messages(one + other))
    assert [(kind, number) for kind, number, _ in found] == [(5, 1), (6, 2)]
    assert kernel.attributes(found[0][2][kernel.GENERIC.size :]) == {1: b"abc"}


class _Answering(kernel.Kernel):
    """A kernel in a thread, at the other end of a socket pair."""

    def __init__(self, answers: list[bytes]) -> None:
        self._socket, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(5)
        self._sequence = 0
        self._answers = answers
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def __enter__(self) -> _Answering:
        self._family = self._find_family()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._thread.join()
        self.other.close()

    def _answer(self) -> None:
        for answer in self._answers:
            self.other.recv(65536)
            self.other.send(answer)


def _acknowledge(sequence: int, error: int = 0) -> bytes:
    body = kernel.ERROR.pack(error) + bytes(16)
    return kernel.MESSAGE.pack(16 + len(body), kernel.NLMSG_ERROR, 0, sequence, 0) + body


def _reply(kind: int, sequence: int, *words: bytes) -> bytes:
    body = kernel.GENERIC.pack(1, 1, 0) + b"".join(words)
    return kernel.MESSAGE.pack(16 + len(body), kind, 0, sequence, 0) + body


def _family() -> bytes:
    number = kernel.attribute(kernel.CTRL_ATTR_FAMILY_ID, kernel.U16.pack(27))
    return _reply(kernel.GENL_ID_CTRL, 1, number) + _acknowledge(1)


def test_the_kernel_makes_a_device() -> None:
    index = kernel.attribute(kernel.NBD_ATTR_INDEX, kernel.U32.pack(4))
    answers = [_family(), _reply(27, 2, index) + _acknowledge(2), _acknowledge(3)]
    with _Answering(answers) as talk:
        assert talk.connect(session(), kernel.Device(), [5]) == 4
        talk.disconnect(4)


def test_the_kernel_refuses() -> None:
    busy = pytest.raises(VdiskError, match="busy")
    with _Answering([_family(), _acknowledge(2, -16)]) as talk, busy:
        talk.connect(session(), kernel.Device(), [5])


def test_a_kernel_without_nbd() -> None:
    talk = _Answering([_acknowledge(1, -2)])
    try:
        with pytest.raises(UnsupportedFeatureError, match="modprobe nbd"):
            talk.__enter__()
    finally:
        talk.__exit__()
