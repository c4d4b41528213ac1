"""Kernels made by hand: what is placed where, and that no file can do harm."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vdisk.errors import (
    FormatError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
    VdiskError,
)
from vdisk.vm import loader
from vdisk.vm._boot import linux, multiboot, pvh
from vdisk.vm.loader import MemoryRange
from vdisk.vm.memory import GuestMemory

MIB = 1 << 20
SIZE = 32 * MIB
RANGES = [
    MemoryRange(0, 0x9FC00),
    MemoryRange(0x9FC00, 0x400, 2),
    MemoryRange(MIB, SIZE - MIB - 0x10000),
    MemoryRange(SIZE - 0x10000, 0x10000, 3),
]


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(SIZE)


def bzimage(
    *, version: int = 0x20F, xloadflags: int = 1, sectors: int = 2, body: bytes = b"KERNEL" * 300,
    initrd_max: int = 0x7FFF_FFFF, init_size: int = 4 * MIB, pref: int = 16 * MIB,
    cmdline: int = 100, loadflags: int = 1,
) -> bytes:  # fmt: skip
    """A kernel file with these header fields."""
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = b"\xeb\x6a"  # jmp 26Ch, the end of the header
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x22C, initrd_max)
    setup[0x234] = 1
    struct.pack_into("<HI", setup, 0x236, xloadflags, cmdline)
    struct.pack_into("<QI", setup, 0x258, pref, init_size)
    return bytes(setup) + body


def written(tmp_path: Path, data: bytes, name: str = "kernel") -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def load(memory: GuestMemory, path: str, **options: object) -> loader.Entry:
    return loader.read(path, most=memory.size).load(memory, RANGES, **options)  # type: ignore[arg-type]


# -- Linux ---------------------------------------------------------------------------------------


def test_linux_in_64_bit_mode(memory: GuestMemory, tmp_path: Path) -> None:
    initrd = written(tmp_path, b"RAMDISK" * 1000, "initrd")
    path = written(tmp_path, bzimage())
    entry = load(memory, path, command_line="console=ttyS0", initrd=initrd, rsdp=0xF5000)
    assert entry.registers.rip == MIB + 0x200
    assert memory.read(MIB, 6) == b"KERNEL"
    page = memory.read(entry.registers.gprs[6], 4096)  # RSI
    assert page[0x1F1] == 2 and page[0x202:0x206] == b"HdrS" and page[0x1EF] == 0
    assert page[0x210] == 0xFF
    pointer, address, length = (
        struct.unpack_from("<I", page, offset)[0] for offset in (0x228, 0x218, 0x21C)
    )
    assert memory.read(pointer, 14) == b"console=ttyS0\0"
    assert memory.read(address, length) == b"RAMDISK" * 1000
    assert address % 4096 == 0 and address + length <= SIZE - 0x10000  # the ACPI tables are spared
    assert address >= 20 * MIB  # and so is the place where the kernel unpacks itself
    assert struct.unpack_from("<Q", page, 0x70)[0] == 0xF5000
    assert page[0x1E8] == 4
    assert struct.unpack_from("<QQI", page, 0x2D0 + 60) == (SIZE - 0x10000, 0x10000, 3)
    system = entry.system
    assert system.efer == 0x500 and system.cr4 == 0x20 and system.cr0 == 0x8000_0011
    assert (system.cs.selector, system.ds.selector, system.cs.attributes) == (16, 24, 0xA09B)
    gdt = memory.read(system.gdt.base, system.gdt.limit + 1)
    assert gdt[16:24] == bytes.fromhex("ffff0000009baf00")
    assert gdt[24:32] == bytes.fromhex("ffff00000093cf00")


@pytest.mark.parametrize("address", [0, 0x20_1234, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_the_boot_page_tables_are_an_identity(
    memory: GuestMemory, tmp_path: Path, address: int
) -> None:
    table = load(memory, written(tmp_path, bzimage())).system.cr3
    for shift in (39, 30, 21):
        entry = int.from_bytes(memory.read(table + 8 * (address >> shift & 511), 8), "little")
        assert entry & 3 == 3
        table = entry & ~0xFFF
    assert entry & 0x80 and table == address & ~0x1F_FFFF


def test_linux_in_32_bit_mode(memory: GuestMemory, tmp_path: Path) -> None:
    entry = load(memory, written(tmp_path, bzimage(xloadflags=0)), bits=32)
    assert entry.registers.rip == MIB and entry.registers.rflags == 2
    assert entry.system.cs.attributes == 0xC09B and entry.system.cr0 == 0x11
    with pytest.raises(UnsupportedFeatureError, match="64-bit"):
        load(memory, written(tmp_path, bzimage(xloadflags=0)), bits=64)


def test_linux_in_real_mode(memory: GuestMemory, tmp_path: Path) -> None:
    data = bzimage(xloadflags=0, version=0x207)
    entry = load(memory, written(tmp_path, data), command_line="quiet")
    assert entry.system.cs.base == 0x10200 and entry.registers.rip == 0
    assert entry.system.ss.base == 0x10000
    setup = memory.read(0x10000, 1536)
    assert setup[0x211] == 0x81 and setup[0x206:0x208] == b"\x07\x02"
    pointer, heap = (
        struct.unpack_from("<I", setup, 0x228)[0],
        struct.unpack_from("<H", setup, 0x224),
    )
    assert memory.read(pointer, 6) == b"quiet\0" and heap[0] == entry.registers.gprs[4] - 512


def test_the_text_screen_of_the_bios_is_passed_on(memory: GuestMemory, tmp_path: Path) -> None:
    memory.write(0x449, struct.pack("<BH", 3, 80))
    memory.write(0x450, bytes([5, 7]))
    memory.write(0x484, bytes([24, 16]))
    page = memory.read(load(memory, written(tmp_path, bzimage())).registers.gprs[6], 64)
    assert (page[0], page[1], page[6], page[7], page[14], page[15], page[16]) == (
        5, 7, 3, 80, 25, 1, 16,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_size": 20 * MIB}, "needs memory from"),
        ({"pref": 1 << 50}, "needs memory from"),
        ({"loadflags": 0}, "boot protocol 2.15"),
        ({"version": 0x201}, "boot protocol 2.01"),
        ({"sectors": 200}, "setup code of 200"),
        ({"body": b""}, "setup code of 2 sectors"),
    ],
)
def test_kernels_that_cannot_be_started(
    memory: GuestMemory, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(VdiskError, match=message):
        load(memory, written(tmp_path, bzimage(**options)))  # type: ignore[arg-type]


def test_command_lines_and_ram_disks_have_to_fit(memory: GuestMemory, tmp_path: Path) -> None:
    path = written(tmp_path, bzimage())
    with pytest.raises(InvalidRequestError, match="takes 100"):
        load(memory, path, command_line="x" * 101)
    with pytest.raises(InvalidRequestError, match="do not fit"):
        load(memory, path, initrd=written(tmp_path, bytes(13 * MIB), "large"))
    low = written(tmp_path, bzimage(initrd_max=20 * MIB - 1), "low")
    with pytest.raises(InvalidRequestError, match="do not fit"):
        load(memory, low, initrd=written(tmp_path, b"x", "small"))
    with pytest.raises(NotFoundError):
        load(memory, path, initrd=str(tmp_path / "missing"))


def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="larger than the memory"):
        loader.read(written(tmp_path, bzimage() + bytes(5000)), most=4096)


# -- Multiboot -----------------------------------------------------------------------------------


def header(flags: int, *addresses: int) -> bytes:
    checksum = -(0x1BADB002 + flags) & 0xFFFF_FFFF
    return struct.pack("<3I", 0x1BADB002, flags, checksum) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


def elf32(segments: list[tuple[int, int, bytes, int]], start: int, flags: int = 3) -> bytes:
    """Segments are (virtual, physical, data, size in memory)."""
    table = 52 + 32  # behind the header and a Multiboot header
    offset = table + 32 * len(segments)
    rows, body = b"", b""
    for virtual, physical, data, size in segments:
        rows += struct.pack("<8I", 1, offset + len(body), virtual, physical, len(data), size, 7, 1)
        body += data
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head += struct.pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, start, table, 0, 0, 52, 32, len(segments), 0, 0, 0
    )
    return head + header(flags).ljust(32, b"\0") + rows + body


def test_multiboot_elf_with_modules(memory: GuestMemory, tmp_path: Path) -> None:
    memory.write(2 * MIB, b"\xff" * 64)  # bss has to be cleared
    data = elf32(
        [(0xC020_0000, 2 * MIB, b"TEXT", 64), (0xC030_0000, 3 * MIB, b"DATA", 4)], 0xC020_0002
    )
    written(tmp_path, b"first module", "one")
    written(tmp_path, b"second", "two,x")
    path = written(tmp_path, data)
    entry = load(memory, path, command_line="a b", initrd=f"{tmp_path}/one arg=1,{tmp_path}/two,,x")
    assert memory.read(2 * MIB, 64) == b"TEXT".ljust(64, b"\0")
    assert memory.read(3 * MIB, 4) == b"DATA"
    assert entry.registers.rip == 2 * MIB + 2
    assert entry.registers.gprs[0] == 0x2BADB002
    information = memory.read(entry.registers.gprs[3], 116)
    flags, lower, upper, _device, text, count, modules = struct.unpack_from("<7I", information)
    assert flags & 0x4D == 0x4D
    assert (lower, upper) == (0x9FC00 >> 10, (SIZE - 0x10000 - MIB) >> 10)
    assert memory.read(text, 256).split(b"\0")[0] == path.encode() + b" a b"
    found = [struct.unpack("<4I", memory.read(modules + 16 * i, 16)) for i in range(count)]
    contents = [memory.read(start, end - start) for start, end, _, _ in found]
    strings = [memory.read(string, 256).split(b"\0")[0] for _, _, string, _ in found]
    assert contents == [b"first module", b"second"]
    assert strings == [f"{tmp_path}/one arg=1".encode(), f"{tmp_path}/two,x".encode()]
    assert all(start % 4096 == 0 for start, *_ in found)
    length, table = struct.unpack_from("<II", information, 44)
    rows = [struct.unpack("<IQQI", memory.read(table + at, 24)) for at in range(0, length, 24)]
    assert [row[1:] for row in rows] == [tuple(item) for item in RANGES]


def test_multiboot_with_addresses(memory: GuestMemory, tmp_path: Path) -> None:
    data = b"JUNK" + header(0x10000, MIB + 4, MIB, MIB + 100, MIB + 200, MIB + 40)
    path = written(tmp_path, data.ljust(300, b"k"))
    entry = load(memory, path)
    assert memory.read(MIB, 4) == b"JUNK"
    assert memory.read(MIB + 99, 2) == b"k\0"
    assert entry.registers.rip == MIB + 40
    assert entry.system.cr0 == 0x11 and entry.system.cs.attributes == 0xC09B


@pytest.mark.parametrize(
    ("pieces", "information"),
    [
        ([(0x8000, 0x6000)], 0xF000),
        ([(0x2_F000, 0x2000)], 0x3_2000),
        ([(0x5000, 0x9_0000), (MIB, MIB + 5)], 2 * MIB + 0x2000),
        ([(0x8000, 0x10), (0xA000, 0x10)], 0xC000),
    ],
)
def test_multiboot_information_goes_where_the_kernel_is_not(
    memory: GuestMemory, tmp_path: Path, pieces: list[tuple[int, int]], information: int
) -> None:
    data = elf32([(at, at, b"K", size) for at, size in pieces], pieces[0][0])
    written(tmp_path, b"module", "module")
    entry = load(memory, written(tmp_path, data), initrd=f"{tmp_path}/module")
    assert entry.registers.gprs[3] == information
    assert entry.system.gdt.base == information - 0x1000
    assert all(memory.read(at, 2) == b"K\0" for at, _ in pieces)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(0x18), "flags 0x18"),
        (header(3), "neither ELF"),
        (header(0x10000, 0, MIB, 0, 0, 0).ljust(99), "before the kernel"),
        (header(0x10000, MIB, MIB, MIB + 500, 0, MIB).ljust(99), "past the file"),
        (header(0x10000, MIB, MIB, MIB + 90, MIB + 10, MIB).ljust(99), "inside the kernel"),
        (header(0x10000, MIB), "cut off"),
        (elf32([(0, 1 << 31, b"x", 1)], 0), "needs memory"),
        (elf32([(0, 0x6000, b"x", 0x99000), (0, MIB, b"x", 31 * MIB - 0x2_0000)], 0), "no room"),
        (elf32([(MIB, MIB, b"x", 0)], 0), "past the file"),
        (elf32([], 0), "nothing to load"),
        (b"hello", "neither a Linux"),
    ],
)
def test_multiboot_kernels_that_cannot_be_started(
    memory: GuestMemory, tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(VdiskError, match=message):
        load(memory, written(tmp_path, data))


# -- PVH -----------------------------------------------------------------------------------------


def pvh_kernel(entry_point: int, *, kind: int = 18, name: bytes = b"Xen\0") -> bytes:
    """An ELF of 64 bits with one segment at 2 MiB, and a note before the one that counts."""
    other = struct.pack("<3I", 4, 5, 1) + b"GNU\0" + b"12345\0\0\0"
    note = other + struct.pack("<3I", 4, 8, kind) + name + struct.pack("<Q", entry_point)
    table, body = 64, 64 + 2 * 56
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack(
        "<HHIQQQIHHHHHH",
        2,
        62,
        1,
        0xFFFF_FFFF_8100_0000 & 0xFFFF_FFFF,
        table,
        0,
        0,
        64,
        56,
        2,
        0,
        0,
        0,
    )
    rows = struct.pack("<II6Q", 1, 7, body, 0, 2 * MIB, 4, 64, 1)
    rows += struct.pack("<II6Q", 4, 4, body + 4, 0, 0, len(note), len(note), 4)
    return head + rows + b"TEXT" + note


def test_pvh_with_an_initial_ram_disk(memory: GuestMemory, tmp_path: Path) -> None:
    memory.write(2 * MIB, b"\xff" * 64)
    written(tmp_path, b"ramdisk", "initrd")
    path = written(tmp_path, pvh_kernel(2 * MIB + 2))
    kernel = loader.read(path, most=SIZE)
    assert (kernel.protocol, kernel.bits) == ("pvh", 64)
    entry = kernel.load(
        memory, RANGES, command_line="a b", initrd=f"{tmp_path}/initrd", rsdp=0xF_1230
    )
    assert entry.registers.rip == 2 * MIB + 2
    assert entry.system.cr0 & 0x8000_0001 == 1 and entry.system.cs.attributes & 0x4000
    assert memory.read(2 * MIB, 64) == b"TEXT".ljust(64, b"\0")
    magic, version, flags, count, modules, text, rsdp, table, entries, _ = struct.unpack(
        "<4I4Q2I", memory.read(entry.registers.gprs[3], 56)
    )
    assert (magic, version, flags, count, rsdp) == (0x336EC578, 1, 0, 1, 0xF_1230)
    assert memory.read(text, 4) == b"a b\0"
    start, length, _, _ = struct.unpack("<4Q", memory.read(modules, 32))
    assert memory.read(start, length) == b"ramdisk"
    rows = [struct.unpack("<2QI4x", memory.read(table + 24 * at, 24)) for at in range(entries)]
    assert rows == [tuple(item) for item in RANGES]


@pytest.mark.parametrize(
    "data",
    [
        pvh_kernel(2 * MIB, kind=17),
        pvh_kernel(2 * MIB, name=b"Xem\0"),
        pvh_kernel(1 << 32),
        pvh_kernel(2 * MIB)[:-9],
    ],
    ids=["another note", "another's note", "above 4 GiB", "cut off"],
)
def test_executables_without_a_pvh_entry(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FormatError):
        loader.read(written(tmp_path, data), most=SIZE)


def test_module_names() -> None:
    with pytest.raises(InvalidRequestError, match="empty module"):
        loader.parse_modules("a,,b,")
    assert loader.parse_modules("") == []


@given(
    st.binary(max_size=2000),
    st.sampled_from([bzimage(), elf32([(MIB, MIB, b"x" * 50, 90)], MIB), pvh_kernel(MIB), b""]),
    st.integers(0, 700),
)
@example(b"", bzimage(), 0)
def test_any_bytes_are_a_kernel_or_a_declared_error(noise: bytes, base: bytes, place: int) -> None:
    data = bytearray(base)
    data[place : place + len(noise)] = noise
    memory = GuestMemory(4 * MIB)
    ranges = [MemoryRange(0, 0x9FC00), MemoryRange(MIB, 3 * MIB)]
    for module in (linux, multiboot, pvh):
        try:
            image = module.parse("kernel", bytes(data))
        except (FormatError, UnsupportedFeatureError):
            continue
        try:
            module.load(image, memory, ranges, command_line=b"x")
        except VdiskError:
            continue
