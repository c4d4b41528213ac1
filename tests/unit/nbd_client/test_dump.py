"""``vdisk-nbd dump``: lines, stars, and what is not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_server import HostileServer, honest
from tests.tools.nbd_pair import MemoryDisk
from vdisk.block import BlockDevice, Extent, Kind
from vdisk.cli._nbd.dump import WIDTH, dump
from vdisk.cli.colour import Painter
from vdisk.cli.nbd import main
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

ZEROES = "00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00 |................|"


class Painted:
    """The options of a terminal, or of a file."""

    def __init__(self, colour: bool) -> None:
        self.colour = colour


def lines(device: BlockDevice, end: int | None = None, *, colour: bool = False) -> list[str]:
    shown: list[str] = []
    painter = Painter(Painted(colour))  # type: ignore[arg-type]
    dump(device, device.size if end is None else end, painter, shown.append)
    return shown


def memory(content: bytes) -> BlockDevice:
    store = MemoryStore(len(content))
    store.write(0, content)
    return store


class Empty(BlockDevice):
    """As large as a disk can be, all hole but for a byte; nobody reads its holes."""

    name = "empty"
    size = 1 << 62
    data = 5 << 40

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        end = start + length
        yield Extent(start, self.data, Kind.HOLE)
        yield Extent(self.data, 1, Kind.DATA, self, self.data)
        yield Extent(self.data + 1, end - self.data - 1, Kind.HOLE)

    def _read_into(self, offset: int, view: memoryview) -> None:
        assert (offset, len(view)) == (self.data, 1)
        view[:] = b"!"


def test_a_line_is_sixteen_bytes_and_the_last_is_padded() -> None:
    assert lines(memory(bytes(range(0x3A, 0x53)))) == [
        "0000000000: 3a 3b 3c 3d 3e 3f 40 41  42 43 44 45 46 47 48 49 |:;<=>?@ABCDEFGHI|",
        "0000000010: 4a 4b 4c 4d 4e 4f 50 51  52                      |JKLMNOPQR       |",
    ]


def test_equal_lines_are_a_star_but_the_last_is_shown() -> None:
    content = b"a" * 64 + b"b" * 16 + b"\xff" * 32
    shown = [line.split(":")[0] for line in lines(memory(content))]
    assert shown == ["0000000000", "*", "0000000040", "0000000050", "0000000060"]


@pytest.mark.parametrize("size", range(3 * WIDTH))
def test_holes_are_lines_of_zeroes(size: int) -> None:
    """The same whether the zeroes are known or read."""

    class Read(BlockDevice):
        name = "read"

        @property
        def size(self) -> int:
            return size

        def _read_into(self, offset: int, view: memoryview) -> None:
            view[:] = bytes(len(view))

    assert lines(MemoryStore(size)) == lines(Read())


def test_what_is_known_to_be_zero_is_not_read() -> None:
    shown = lines(Empty())
    assert shown[:2] == [f"0000000000: {ZEROES}", "*"]
    assert shown[2].startswith(f"{Empty.data:010x}: 21 00 ")
    assert shown[3:5] == [f"{Empty.data + WIDTH:010x}: {ZEROES}", "*"]
    assert shown[5:] == [f"{Empty.size - WIDTH:010x}: {ZEROES}"]


def test_colours_do_not_change_the_text() -> None:
    import re

    device = memory(b"some text\0\1\2 and then some")
    painted = "\n".join(lines(device, colour=True))
    assert "\033[" in painted
    assert re.sub(r"\033\[\d+m", "", painted) == "\n".join(lines(device))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(MemoryDisk.of(1 << 20))) as server:
        assert main(["dump", "--length", "16", server.uri]) == 0
        assert capsys.readouterr().out == f"0000000000: {ZEROES}\n"
        assert main(["dump", "--no-colour", server.uri]) == 0
        assert capsys.readouterr().out.count("\n") == 3
        assert main(["dump", "-n", "-1", server.uri]) == 1
        assert main(["dump"]) == 1
