"""What translating costs: an instruction whose bytes were never seen, and one that is known.

    python bench/translation.py [FILE] [--kib 512] [--rounds 5]

All blocks of a program's text (a 64-bit ELF file's, or all bytes of another file) are translated
one after another from Python, as if jumps led to each.  Handlers have been compiled before.
*New*: nothing is known yet, so every encoding has to be decoded and lowered; one entry serves for
all encodings that differ in a 32-bit number at their end, so both are counted.  *Repeated*: the
same blocks again, after all translations were dropped.  Processor time, medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import llvmlite

from vdisk.vm.accel.llvm import LlvmAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.orders import decoder
from vdisk.vm.cpu.translation import BLOCK_LIMIT
from vdisk.vm.memory import PAGE_SIZE, GuestMemory

LONG = Mode(64, 64, checked=False)
START = 1 << 20
PT_LOAD, PF_X = 1, 1


class Text(NamedTuple):
    """What is translated."""

    content: bytes
    blocks: list[int]
    """Where each block begins."""
    instructions: int
    encodings: int


def program_text(path: Path) -> bytes:
    """The first executable segment of an ELF file; any other file as it is."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return data
    (headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for at in range(headers, headers + count * size, size):
        kind, rights, start, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == PT_LOAD and rights & PF_X:
            return data[start : start + length]
    raise SystemExit(f"{path} has no executable segment")


def blocks_of(content: bytes) -> Text:
    """Find blocks: each page from its beginning, one behind the other."""
    blocks: list[int] = []
    encodings: set[bytes] = set()
    instructions = 0
    decode_block = decoder(LONG).decode_block
    for start in range(0, len(content), PAGE_SIZE):
        page, offset = content[start : start + PAGE_SIZE], 0
        while block := decode_block(page, offset, BLOCK_LIMIT):
            blocks.append(start + offset)
            instructions += len(block)
            for each in block:
                encodings.add(page[offset : offset + each.length])
                offset += each.length
    return Text(content, blocks, instructions, len(encodings))


def translate_all(engine: LlvmAccelerator, text: Text) -> float:
    """Processor seconds for all blocks."""
    vcpu, translate = engine.vcpus[0], engine.translate
    began = time.thread_time()
    for block in text.blocks:
        translate(vcpu, START + block, LONG)
    return time.thread_time() - began


def measure(text: Text) -> tuple[float, float, int]:
    """Seconds with nothing known and with everything known, and how many entries that takes."""
    memory = GuestMemory(START + len(text.content) + (1 << 20) & -(1 << 20))
    memory.write(START, text.content)
    engine = LlvmAccelerator(memory, Bus(), hot=False)
    engine.vcpu(0)
    engine.arena.known.clear()
    new = translate_all(engine, text)
    entries = engine.arena.known.count
    engine.arena.clear()
    return new, translate_all(engine, text), entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    library = next((Path(llvmlite.__file__).parent / "binding").glob("libllvmlite*"))
    parser.add_argument("file", nargs="?", type=Path, default=library, help="default: %(default)s")
    parser.add_argument("--kib", type=int, default=512, help="how much of it")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vdisk-translation-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        text = blocks_of(program_text(arguments.file)[: arguments.kib << 10])
        measure(text)  # which compiles handlers
        found = [measure(text) for _ in range(arguments.rounds)]
    new, repeated, entries = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"{text.instructions} instructions of {text.encodings} encodings in {len(text.blocks)} "
          f"blocks; {entries:.0f} entries")  # fmt: skip
    print(f"{'a new encoding':<28}{new / text.encodings * 1e6:>8.2f} us "
          f"({new / entries * 1e6:.1f} us an entry)")  # fmt: skip
    print(f"{'a repeated instruction':<28}{repeated / text.instructions * 1e6:>8.2f} us")


if __name__ == "__main__":
    main()
