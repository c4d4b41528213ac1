"""fw_cfg by ports and by DMA, as firmware uses it."""

from __future__ import annotations

import struct

import pytest

from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.vm.bus import Bus
from vdisk.vm.devices import fw_cfg
from vdisk.vm.devices.fw_cfg import FwCfg
from vdisk.vm.memory import GuestMemory


class Board:
    def __init__(self) -> None:
        self.bus = Bus()
        self.memory = GuestMemory(1 << 20)
        self.fw_cfg = FwCfg(self.bus, self.memory)

    def select(self, key: int) -> None:
        self.bus.ports.write(0x510, 2, key)

    def read(self, length: int) -> bytes:
        return bytes(self.bus.ports.read(0x511, 1) for _ in range(length))

    def files(self) -> dict[str, tuple[int, int]]:
        self.select(fw_cfg.FILE_DIRECTORY)
        count = int.from_bytes(self.read(4), "big")
        found = {}
        for _ in range(count):
            size, key, _, name = struct.unpack(">IHH56s", self.read(64))
            found[name.rstrip(b"\0").decode()] = (key, size)
        return found

    def dma(self, control: int, length: int, address: int, at: int = 0x1000) -> int:
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        self.bus.ports.write(0x514, 4, 0)
        self.bus.ports.write(0x518, 4, int.from_bytes(at.to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read(at, 4), "big")


@pytest.fixture
def board() -> Board:
    return Board()


def test_signature_and_features(board: Board) -> None:
    board.select(0)
    assert board.read(6) == b"QEMU\0\0"
    board.select(1)
    assert board.read(4) == b"\x03\0\0\0"
    assert board.bus.ports.read(0x514, 4).to_bytes(4, "little") == b"QEMU"
    assert board.bus.ports.read(0x518, 4).to_bytes(4, "little") == b" CFG"


def test_files_are_found_by_name(board: Board) -> None:
    board.fw_cfg.add_file("etc/b", b"two")
    board.fw_cfg.add_file("etc/a", b"one!")
    board.fw_cfg.add_file("etc/b", b"three")
    files = board.files()
    assert list(files) == ["etc/a", "etc/b"]
    key, size = files["etc/b"]
    board.select(key)
    assert board.read(size + 1) == b"three\0"


def test_numbers_and_tables(board: Board) -> None:
    board.fw_cfg.add_number(fw_cfg.CPUS, 4)
    board.select(fw_cfg.CPUS)
    assert board.read(2) == b"\x04\0"
    board.fw_cfg.add_memory_map([(0, 0x100000, fw_cfg.E820_RAM)])
    board.fw_cfg.add_boot_order(["/pci@i0cf8/disk@3", "/rom@x"])
    files = board.files()
    board.select(files["etc/e820"][0])
    assert board.read(20) == struct.pack("<QQI", 0, 0x100000, 1)
    board.select(files["bootorder"][0])
    assert board.read(files["bootorder"][1]) == b"/pci@i0cf8/disk@3\n/rom@x\0"


def test_an_unknown_key_reads_zeros(board: Board) -> None:
    board.select(0x1234)
    assert board.read(3) == b"\0\0\0"


def test_dma_reads_with_zeros_behind_the_end(board: Board) -> None:
    board.memory.write(0x2000, b"\xff" * 16)
    assert board.dma(0 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_READ, 8, 0x2000) == 0
    assert board.memory.read(0x2000, 9) == b"QEMU\0\0\0\0\xff"


def test_dma_goes_on_where_it_stopped_and_skips(board: Board) -> None:
    board.fw_cfg.add_file("f", b"abcdefgh")
    key = board.files()["f"][0]
    board.dma(key << 16 | fw_cfg.DMA_SELECT, 0, 0)
    board.dma(fw_cfg.DMA_SKIP, 2, 0)
    board.dma(fw_cfg.DMA_READ, 3, 0x2000)
    board.dma(fw_cfg.DMA_READ, 2, 0x2003)
    assert board.memory.read(0x2000, 5) == b"cdefg"


def test_dma_tells_translations_what_it_wrote(board: Board) -> None:
    dirtied: list[tuple[int, int]] = []
    board.memory.on_dirtied(dirtied.extend)
    board.dma(fw_cfg.DMA_SELECT | fw_cfg.DMA_READ, 4, 0x2000)
    assert (0x2000, 4) in dirtied


@pytest.mark.parametrize(
    ("control", "length", "address"),
    [
        (fw_cfg.DMA_READ, 0xFFFF_FFFF, 0x2000),
        (fw_cfg.DMA_READ, 16, (1 << 64) - 8),
        (fw_cfg.DMA_READ, 16, (1 << 20) - 8),
        (fw_cfg.DMA_WRITE, 4, 0x2000),
    ],
)
def test_what_cannot_be_done_is_an_error(
    board: Board, control: int, length: int, address: int
) -> None:
    assert board.dma(control, length, address) == fw_cfg.DMA_ERROR


def test_an_access_outside_memory_is_ignored(board: Board) -> None:
    board.bus.ports.write(0x514, 4, 0xFFFF_FFFF)
    board.bus.ports.write(0x518, 4, 0xFFFF_FFFF)


def test_names_have_a_limit(board: Board) -> None:
    with pytest.raises(InvalidRequestError):
        board.fw_cfg.add_file("x" * 56, b"")


def test_odd_accesses_have_an_answer(board: Board) -> None:
    for offset in range(12):
        for size in (1, 2, 4):
            board.bus.ports.write(0x510 + offset, size, (1 << 8 * size) - 1)
            assert 0 <= board.bus.ports.read(0x510 + offset, size) < 1 << 8 * size


def test_state_survives(board: Board) -> None:
    board.select(0)
    board.read(2)
    other = Board()
    other.fw_cfg.load_state(board.fw_cfg.save_state())
    assert other.read(2) == b"MU"
    with pytest.raises(CorruptImageError):
        other.fw_cfg.load_state(board.fw_cfg.save_state() | {"offset": -1})


def test_a_file_may_be_made_when_it_is_read(board: Board) -> None:
    board.fw_cfg.add_file("etc/a", b"old")
    board.fw_cfg.before_reading("etc/a", lambda: board.fw_cfg.add_file("etc/a", b"new"))
    key, size = board.files()["etc/a"]
    board.select(key)
    assert board.read(size) == b"new"
