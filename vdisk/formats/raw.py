"""raw: the disk itself, byte for byte.

There is no header.  A raw image has no marks of its own either, so a guest that writes a qcow2
header into its first sector would turn its raw disk into something that a careless program
opens as qcow2 and lets name any file of the host as its backing file.  Hence the rule QEMU
made: where the format was *guessed* to be raw, nobody may write into the first sector what
recognition would take for another format (:class:`vdisk.errors.ReadOnlyError` here).
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from vdisk.block import BlockDevice, Extent, Kind
from vdisk.errors import InvalidRequestError, ReadOnlyError
from vdisk.formats import NO_SECRETS, PROBE_SIZE, CreateOption, OpenContext, probe
from vdisk.options import OptionBag
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

SECTOR = 512
"""Disks are whole sectors: a file that ends inside one is read as if padded with zeroes."""

PREALLOCATION = ("off", "falloc", "full")


class RawImage(BlockDevice):
    """A raw disk in ``file``, its size fixed until :meth:`truncate`.

    ``guessed``: the format was probed, so the first sector is guarded (see the module).
    """

    format_name = "raw"

    def __init__(self, file: BlockDevice, *, readonly: bool, guessed: bool = False) -> None:
        self.file = file
        self.name = file.name
        self.readonly = readonly
        self.zeroes_fast = file.zeroes_fast
        self.locate_unit = file.locate_unit
        self._guarded = guessed
        self._guard = Lock()
        self._size = round_up(file.size, SECTOR)

    @property
    def size(self) -> int:
        return self._size

    def moves(self) -> int | None:
        return self.file.moves()

    def hold(self) -> AbstractContextManager[None]:
        return self.file.hold()

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        """As the file; the padding of the last sector is room that the file can grow into."""
        inside = min(length, max(self.file.size - start, 0))
        if inside:
            yield from self.file.map(start, inside)
        if inside < length:
            end = start + inside
            yield Extent(end, length - inside, Kind.ZERO, self.file, end)

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self.file.locate(offset, length)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.readv_file(offset, [view])

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        self.readv_file(offset, views)

    def readv_file(self, offset: int, views: Sequence[memoryview]) -> None:
        """Read through, except for the padding of the last sector of a file that cannot grow."""
        if self.file.growable or offset + sum(map(len, views)) <= self.file.size:
            self.file.readv(offset, views)
        else:
            super()._readv(offset, views)

    def locate_to_write(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        if offset < PROBE_SIZE and self._guarded:
            return None
        return self.file.locate_to_write(offset, length)

    def hold_to_write(self) -> AbstractContextManager[None]:
        return self.file.hold_to_write()

    def _write(self, offset: int, view: memoryview) -> None:
        if offset < PROBE_SIZE and self._guarded:
            with self._guard:
                self._refuse_disguise(offset, view)
                self.file.write(offset, view)
        else:
            self.file.write(offset, view)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        if offset < PROBE_SIZE and self._guarded:
            super()._writev(offset, views)
        else:
            self.file.writev(offset, views)

    def _refuse_disguise(self, offset: int, view: memoryview) -> None:
        """Under the guard: two writes at once might each be half of a magic number."""
        head = bytearray(self.read(0, min(PROBE_SIZE, self._size)))
        part = view[: len(head) - offset]
        head[offset : offset + len(part)] = part
        found = probe(bytes(head))
        if found != "raw":
            raise ReadOnlyError(
                f"the format of this image was guessed to be raw, and this write would make it "
                f"look like {found}; name the format (-f raw, format='raw') to allow it",
                path=self.name,
                offset=offset,
                operation="write",
            )

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._keeping_raw(offset, length):
            self.file.write_zeroes(offset, length, unmap=unmap)

    @contextmanager
    def _keeping_raw(self, offset: int, length: int) -> Iterator[None]:
        """Zeroes can complete a magic number, too: that of qcow2 is mostly zeroes after "QFI"."""
        if offset < PROBE_SIZE and self._guarded:
            with self._guard:
                self._refuse_disguise(offset, memoryview(bytes(min(length, PROBE_SIZE - offset))))
                yield
        else:
            yield

    def _copy_from(self, offset: int, source: BlockDevice, source_offset: int, length: int) -> int:
        if offset < PROBE_SIZE and self._guarded:
            return 0
        return self.file.copy_from(offset, source, source_offset, length)

    def _discard(self, offset: int, length: int) -> None:
        with self._keeping_raw(offset, length):
            self.file.discard(offset, length)

    def _flush(self) -> None:
        self.file.flush()

    def _truncate(self, size: int) -> None:
        if size % SECTOR:
            raise InvalidRequestError(f"size {size} is not a multiple of {SECTOR}", path=self.name)
        self.file.truncate(size)
        self._size = size

    def _close(self) -> None:
        self.file.close()


FIRST_BLOCK = 4096
"""Bytes at the beginning of a new file that are written: programs that bypass the page cache find
out by reading them how they must align, which not every file system tells of a hole."""


def preallocate(file: BlockDevice, start: int, end: int, mode: str) -> None:
    """Give [start, end) of ``file`` room on its disk: "falloc" reserves, "full" writes zeroes."""
    allocate = getattr(file, "allocate", None)
    if mode == "falloc" and allocate is not None:
        allocate(start, end - start)
    elif mode != "off":
        BlockDevice._write_zeroes(file, start, end - start, unmap=False)


def _window(file: BlockDevice, offset: int, size: int | None) -> BlockDevice:
    from vdisk.filters.window import Window

    return Window(file, offset, size)


class RawDriver:
    """Opens and creates raw images."""

    name = "raw"
    create_options = (
        CreateOption("size", "size", "virtual disk size"),
        CreateOption(
            "preallocation", "enum", "what to allocate now", default="off", choices=PREALLOCATION
        ),
    )

    def open(self, file: BlockDevice, context: OpenContext) -> RawImage:
        """Options: "offset" and "size" choose a part of the file; "format-guessed"."""
        try:
            bag = OptionBag(context.options, "driver 'raw'")
            guessed = bag.boolean("format-guessed")
            offset, size = bag.size("offset"), bag.size("size")
            bag.finish()
            if offset is not None or size is not None:
                file = _window(file, offset or 0, size)
            return RawImage(file, readonly=context.readonly, guessed=guessed)
        except BaseException:
            file.close()
            raise

    def create(
        self,
        file: BlockDevice,
        size: int,
        options: Mapping[str, Any],
        secrets: Mapping[str, bytes] = NO_SECRETS,
    ) -> None:
        size = round_up(size, SECTOR)
        file.truncate(0)
        file.truncate(size)
        if size and file.growable:
            file.write(0, bytes(min(size, FIRST_BLOCK)))
        if size:
            preallocate(file, 0, size, options.get("preallocation", "off"))

    def measure(
        self, size: int, options: Mapping[str, Any], allocated: int | None = None
    ) -> tuple[int, int]:
        """Bytes of the file, whatever it holds."""
        end = round_up(size, SECTOR)
        return end, end


DRIVER = RawDriver()
