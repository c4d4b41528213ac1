"""What is known of instructions, kept between runs: nothing that a guest has is decoded twice.

One file, replaced as a whole, with the tables as they are in memory::

    magic (4) | bytes of description (4) | CRC-32 of it (4) | CRC-32 of the tables (4)
    description: JSON    modes and shapes by their numbers, the hash's multiplier, counts
    tables               (:meth:`vdisk.vm.cpu.known.Instructions.tables`)

Its name has the digest of this package's source, so tables are never read by another version.
Handlers' addresses are not in it: shapes are, and each process has its own addresses.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from struct import Struct
from typing import TYPE_CHECKING, Any

from vdisk.vm.cpu.cache import is_own
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.decode import Mode

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vdisk.vm.cpu.translate import Translator

HEADER = Struct("<4sIII")
MAGIC = b"vdi1"
LARGEST_FILE = 64 << 20
WORTH_KEEPING = 256
"""So many instructions must be new before the file is written again."""


def content(translator: Translator) -> list[bytes]:
    """The parts of a file with what a translator knows."""
    return _packed(*_copied(translator))


def _copied(translator: Translator) -> tuple[dict[str, Any], list[bytes]]:
    """The description and the tables as they are now."""
    known, modes = translator.arena.known, list(translator.modes)
    description = {
        "modes": modes,
        "shapes": list(translator.shapes),
        "multiplier": known.multiplier,
        "counts": known.counts,
    }
    return description, [bytes(part) for part in known.tables(known.counts, len(modes))]


def _packed(description: dict[str, Any], tables: list[bytes]) -> list[bytes]:
    text, check = json.dumps(description).encode(), 0
    for part in tables:
        check = zlib.crc32(part, check)
    return [HEADER.pack(MAGIC, len(text), zlib.crc32(text), check), text, *tables]


class InstructionStore:
    """The file; a directory that cannot be used makes a store that keeps nothing."""

    def __init__(self, directory: str | None, digest: str) -> None:
        self.path = (
            None if directory is None else os.path.join(directory, f"instructions-{digest}.bin")
        )
        self.kept = 0
        """Instructions that are in the file."""

    def load(self, translator: Translator) -> None:
        """Let a translator know what earlier runs knew, before it knows anything."""
        data = self._read()
        if len(data) < HEADER.size:
            return
        magic, size, check, tables_check = HEADER.unpack_from(data)
        text = data[HEADER.size : HEADER.size + size]
        tables = memoryview(data)[HEADER.size + size :]
        if magic != MAGIC or zlib.crc32(text) != check or zlib.crc32(tables) != tables_check:
            return
        description = json.loads(text)
        known = translator.arena.known
        counts, multiplier = tuple(description["counts"]), description["multiplier"]
        translator.know_shapes([Shape(*shape) for shape in description["shapes"]])
        for mode in description["modes"]:
            translator.mode_number(Mode(*mode))
        known.restore(counts, multiplier, len(description["modes"]), tables)
        self.kept = known.count

    def save(
        self, translator: Translator, lock: AbstractContextManager[object] | None = None
    ) -> None:
        """Keep what a translator knows, if that is much more than what was there.

        ``lock``: held while that is copied, where somebody may learn more meanwhile.
        """
        known = translator.arena.known
        if self.path is None or known.count < self.kept + WORTH_KEEPING:
            return
        with lock or contextlib.nullcontext():
            count, description, tables = known.count, *_copied(translator)
        if self.write(_packed(description, tables)):
            self.kept = count

    def write(self, parts: list[bytes]) -> bool:
        """Have a file with this content; False where that is not possible."""
        if self.path is None:
            return False
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            self._write(parts)
            return True
        return False

    def _write(self, parts: list[bytes]) -> None:
        assert self.path is not None
        temporary = f"{self.path}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.writelines(parts)
            os.replace(temporary, self.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _read(self) -> bytes:
        if self.path is None:
            return b""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            status = os.fstat(file.fileno())
            if is_own(file.fileno()) and status.st_size <= LARGEST_FILE:
                os.utime(file.fileno())  # it is in use
                return file.read()
        return b""
