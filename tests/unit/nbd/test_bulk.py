"""The hot path: runs of plain requests, and replies packed behind each other."""

from __future__ import annotations

from struct import pack

import pytest

from vdisk.nbd.bulk import BulkParser, BulkReplies, ReadSheet
from vdisk.nbd.gate import Gate
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, Session
from vdisk.nbd.wire import TransmissionFlag

SIZE = 1 << 20
FUA = TransmissionFlag.NBD_FLAG_SEND_FUA


def parser(
    style: HeaderStyle = HeaderStyle.STRUCTURED, flags: TransmissionFlag = FUA
) -> BulkParser:
    sizes = BlockSizes(512, 4096, 1 << 16)
    session = Session(ExportInfo("", SIZE, flags, "", sizes), style)
    return BulkParser(session, Gate(session, 2**25))


def read(cookie: int, offset: int, length: int, flags: int = 0, command: int = 0) -> bytes:
    return pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def write(cookie: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    return read(cookie, offset, len(data), flags, 1) + data


def test_a_run_of_reads() -> None:
    buffer = memoryview(read(1, 0, 512) + read(2, 4096, 4096) + read(3, 0, 512)[:-1])
    assert parser().reads(buffer, 100) == ([(1, 0, 512), (2, 4096, 4096)], 56)
    assert parser().reads(buffer, 1) == ([(1, 0, 512)], 28)
    assert parser().reads(buffer[:27], 100) == ([], 0)


def test_kinds() -> None:
    one = read(1, 0, 512)
    ours = parser()
    for buffer, reads in ((one, True), (one + b"x", True), (one[:-1], False), (b"", False)):
        assert (ours.kind(memoryview(buffer)) == ours.read_kind) is reads
    assert ours.kind(memoryview(one[:-1])) == 0
    assert ours.write_kinds[ours.kind(memoryview(write(1, 0, b"")))] is False
    assert ours.write_kinds[ours.kind(memoryview(write(1, 0, b"", flags=1)))] is True
    assert ours.kind(memoryview(write(1, 0, b"", flags=2))) not in ours.write_kinds
    extended = parser(HeaderStyle.EXTENDED)
    assert extended.kind(memoryview(one + bytes(4))) != extended.read_kind


def test_reads_that_are_alike() -> None:
    one, two = read(1, 0, 512), read(2, SIZE - 512, 512)
    assert parser().alike(memoryview(one + two)) == (512, [0, SIZE - 512])
    for other in (read(3, 0, 1024), read(3, SIZE, 512), read(3, 0, 512, flags=4), bytes(28)):
        for together in (one + other, other + one, one + other + two):
            assert parser().alike(memoryview(together)) == (0, [])
    for wrong in (read(3, 1, 512), read(3, 0, 511), read(3, 0, 0), read(3, 0, 1 << 17)):
        assert parser().alike(memoryview(wrong * 2)) == (0, [])


def test_one_write() -> None:
    assert parser().write(memoryview(write(7, 512, b"a" * 512))) == (7, 512, b"a" * 512)
    for other in (
        write(7, 512, b"a" * 512)[:-1],
        write(7, 512, b"a" * 512) + b"x",
        write(7, 512, b"a" * 512, flags=1),
        write(7, SIZE, b"a" * 512),
        write(7, 1, b"a" * 512),
        write(7, 0, b""),
        read(7, 0, 512),
    ):
        assert parser().write(memoryview(other)) is None


def test_extended_reads() -> None:
    buffer = memoryview(pack(">IHHQQQ", 0x21E41C71, 0, 0, 9, 512, 1024))
    assert parser(HeaderStyle.EXTENDED).reads(buffer, 100) == ([(9, 512, 1024)], 32)
    assert parser(HeaderStyle.STRUCTURED).reads(buffer, 100) == ([], 0)


@pytest.mark.parametrize(
    "unusual",
    [
        read(2, 0, 512, flags=4),
        read(2, 0, 0, command=3),
        read(2, 0, 0),
        read(2, 1, 512),
        read(2, 0, 511),
        read(2, SIZE, 512),
        read(2, 2**64 - 512, 512),
        read(2, 0, (1 << 16) + 512),
        b"\0" + read(2, 0, 512)[1:],
    ],
)
def test_anything_unusual_ends_the_run(unusual: bytes) -> None:
    buffer = memoryview(read(1, 0, 512) + unusual + read(3, 0, 512))
    assert parser().reads(buffer, 100) == ([(1, 0, 512)], 28)
    buffer = memoryview(write(1, 0, bytes(512)) + unusual)
    assert parser().writes(buffer, 100)[1] == 28 + 512


def test_what_is_missing_of_a_write() -> None:
    ours, whole = parser(), write(1, 0, bytes(1024))
    for there in (28, 29, 1000):
        assert ours.missing(memoryview(whole[:there]), range(1, 1025)) == len(whole) - there
    for other in (
        *(whole, whole + b"x", whole[:27], b""),
        write(1, 0, bytes(1024), flags=1)[:-1],
        read(1, 0, 1024),
        bytes(28),
    ):
        assert ours.missing(memoryview(other), range(1, 1025)) == 0
    for lengths in (range(1024), range(1025, 2048)):
        assert ours.missing(memoryview(whole[:-1]), lengths) == 0


def test_a_run_of_writes() -> None:
    first, second = b"a" * 512, b"b" * 1024
    whole = write(1, 0, first) + write(2, 512, second, flags=1)
    buffer = memoryview(whole + write(3, 0, first)[:-1])
    writes, used = parser().writes(buffer, 100)
    assert writes == [(1, 0, memoryview(first), False), (2, 512, memoryview(second), True)]
    assert used == len(whole)
    assert parser().writes(buffer, 1)[1] == 28 + 512


@pytest.mark.parametrize("flags", [TransmissionFlag(0), FUA | TransmissionFlag.NBD_FLAG_READ_ONLY])
def test_writes_that_are_not_allowed(flags: TransmissionFlag) -> None:
    buffer = memoryview(write(1, 0, bytes(512), flags=1))
    assert parser(flags=flags).writes(buffer, 100) == ([], 0)


def test_extended_writes_may_carry_their_flag() -> None:
    payload_len, fua = 1 << 5, 1
    for flags, taken in [(0, 1), (payload_len, 1), (payload_len | fua, 1), (fua, 1), (2, 0)]:
        header = pack(">IHHQQQ", 0x21E41C71, flags, 1, 7, 0, 512)
        writes, _ = parser(HeaderStyle.EXTENDED).writes(memoryview(header + bytes(512)), 100)
        assert len(writes) == taken


@pytest.mark.parametrize("style", list(HeaderStyle))
def test_replies_are_packed_where_they_belong(style: HeaderStyle) -> None:
    replies = BulkReplies(style)
    out = bytearray(200)
    position = replies.pack_read(out, 5, 1, 512, 4)
    assert position == 5 + replies.read_header
    out[position : position + 4] = b"data"
    end = replies.pack_done(out, position + 4, 2, 0)
    assert end == position + 4 + replies.done
    assert not any(out[:5])
    assert not any(out[end:])


@pytest.mark.parametrize("style", list(HeaderStyle))
def test_a_sheet_is_what_is_packed(style: HeaderStyle) -> None:
    replies, sheet = BulkReplies(style), ReadSheet(style, 8, 4)
    assert len(sheet.targets) == 4
    wide = style is HeaderStyle.EXTENDED
    for count in (4, 2):  # what was there before does not show
        asked = [(count * 2**32 + number, 2**40 + 512 * number) for number in range(count)]
        requests = b"".join(
            pack(">QQQQ" if wide else ">QQQI", 5, cookie, offset, 8) for cookie, offset in asked
        )
        expected = bytearray(300)
        end = 0
        for (cookie, offset), (data,) in zip(asked, sheet.targets, strict=False):
            data[:] = expected_data = b"data%4d" % (cookie & 1023)
            start = replies.pack_read(expected, end, cookie, offset, 8)
            end = start + 8
            expected[start:end] = expected_data
        assert sheet.replies(memoryview(requests), count) == expected[:end]
