"""Files and block devices as block devices, by the shortest system calls.

Holes are found with SEEK_DATA/SEEK_HOLE and made with ``fallocate``; all I/O is positioned
(``preadv``/``pwritev``), so any number of threads share one descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING

from vdisk.block import BlockDevice, Extent, Kind, fill_zeroes
from vdisk.errors import InvalidRequestError, NotFoundError, from_os_error
from vdisk.stores import _linux, _locks
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIRECT_ALIGNMENT = 4096
"""O_DIRECT granularity: no current disk or file system asks for more."""

_BOUNCE_SIZE = 1 << 20
_IOV_MAX = 1024  # IOV_MAX of Linux and the BSDs

_LARGEST_WRITE = 512 << 10
"""Bytes of one ``pwritev``. For more, Linux looks for as large a piece of the page cache, and
where memory is in pieces, or is a virtual machine's, a write of 2 MiB took up to four times the
processor time of four writes of 512 KiB (Linux 6.18, ext4)."""


WHOLE = 1 << 63
"""The ``locate_unit`` of what stands in one piece, whatever its size: more than any file has."""


class FileStore(BlockDevice):
    """A regular file or a block device at ``path``.

    ``locked``: take QEMU's image locks (see ``_locks``).  ``create``: make the file, or empty
    an old one (a block device keeps its bytes).  ``write_through``: every write is stable when it
    returns (O_DSYNC).  ``ignore_flush``: :meth:`flush` does nothing, for files that need not
    survive a loss of power.
    Raises :class:`NotFoundError`, :class:`ImageLockedError`, :class:`DeviceError`.
    """

    zeroes_fast = True
    locate_unit = WHOLE

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        readonly: bool = True,
        locked: bool = True,
        create: bool = False,
        write_through: bool = False,
        ignore_flush: bool = False,
        extra_flags: int = 0,
    ) -> None:
        self.name = os.fspath(path)
        self._ignore_flush = ignore_flush
        self.readonly = readonly
        self.prompt = not write_through
        """Requests go to the page cache, so most of them wait for no disk."""
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | getattr(os, "O_CLOEXEC", 0) | extra_flags
        if write_through:
            flags |= os.O_DSYNC
        if create:
            flags |= os.O_CREAT
        self._fd = self._open(flags)
        self._locked_by = os.getpid() if locked else None
        try:
            if locked:
                _locks.lock_image(self._fd, self.name, writable=not readonly)
            self._size = self._find_size()
            if create and not self.is_block_device:
                os.ftruncate(self._fd, 0)
                self._size = 0
        except OSError as error:
            self._give_back()
            raise from_os_error(error, path=self.name, operation="open") from error
        except BaseException:
            self._give_back()
            raise
        self._size_lock = threading.Lock()
        self._lost: OSError | None = None
        """How a flush failed.  The system may have dropped what was to be written and take it for
        clean, so that the next fdatasync would report success: every later flush fails, too."""

    def _open(self, flags: int) -> int:
        try:
            return os.open(self.name, flags, 0o644)
        except OSError as error:
            raise from_os_error(error, path=self.name, operation="open") from error
        except ValueError as error:  # a NUL in the name
            raise NotFoundError(str(error), path=self.name, operation="open") from error

    def _find_size(self) -> int:
        status = os.fstat(self._fd)
        if stat.S_ISDIR(status.st_mode):
            raise InvalidRequestError(
                f"'file' driver requires '{self.name}' to be a regular file, not a directory"
            )
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        if self.is_block_device:
            return os.lseek(self._fd, 0, os.SEEK_END)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRequestError(
                f"'file' driver requires '{self.name}' to be a regular file, or a block device"
            )
        self.growable = True
        return status.st_size

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int:
        """The descriptor, for ``sendfile``, ``copy_file_range`` and ``preadv`` elsewhere."""
        return self._fd

    @property
    def allocated_size(self) -> int | None:
        """Bytes of storage in use, holes not counted; None where the system cannot tell."""
        blocks = getattr(os.fstat(self._fd), "st_blocks", None)
        return None if blocks is None else blocks * 512

    # -- reading -----------------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._readv(offset, [view])

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        for start in range(0, len(views), _IOV_MAX):
            batch = views[start : start + _IOV_MAX]
            wanted = sum(map(len, batch))
            try:
                done = os.preadv(self._fd, batch, offset)
                if done != wanted:
                    self._read_rest(offset, batch, done)
            except OSError as error:
                raise from_os_error(
                    error, path=self.name, operation="read", offset=offset
                ) from error
            offset += wanted

    def _read_rest(self, offset: int, views: Sequence[memoryview], done: int) -> None:
        """After a short read: go on, until the end of the file, then zeroes."""
        for view in views:
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if count == 0:
                    fill_zeroes(view[done:])
                    break
                done += count
            offset += len(view)
            done = max(done - len(view), 0)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        end = min(start + length, max(self._size, start))
        position = start
        while position < end:
            data, hole = self._next_data(position, end)
            if data > position:
                yield Extent(position, data - position, Kind.ZERO, self, position)
            if hole > data:
                yield Extent(data, hole - data, Kind.DATA, self, data)
            position = hole
        if start + length > end:
            yield Extent(end, start + length - end, Kind.HOLE)

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return (self, offset) if offset + length <= self._size else None

    def moves(self) -> int:
        return 0

    def _next_data(self, position: int, end: int) -> tuple[int, int]:
        """The first run of data at or after ``position``: (start, end), clipped to ``end``."""
        try:
            data = os.lseek(self._fd, position, os.SEEK_DATA)
            if data >= end:
                return end, end
            return data, min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
        except OSError as error:
            # ENXIO: a hole up to the end of the file. Others: no SEEK_DATA here, all is data.
            return (end, end) if error.errno == errno.ENXIO else (position, end)
        except AttributeError:
            return position, end

    # -- writing -----------------------------------------------------------------------------

    def locate_to_write(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return (self, offset) if offset + length <= self._size else None

    def _write(self, offset: int, view: memoryview) -> None:
        self._writev(offset, [view])

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        for batch in _requests(views):
            wanted = sum(map(len, batch))
            try:
                done = os.pwritev(self._fd, batch, offset)
                if done != wanted:
                    self._write_rest(offset, batch, done)
            except OSError as error:
                self._look_at_size()
                raise from_os_error(
                    error, path=self.name, operation="write", offset=offset
                ) from error
            offset += wanted
            if offset > self._size:
                self._grown_to(offset)

    def _write_rest(self, offset: int, views: Sequence[memoryview], done: int) -> None:
        for view in views:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
            offset += len(view)
            done -= len(view)

    def _look_at_size(self) -> None:
        """A request failed that may have extended the file by part of what it was to write."""
        if not self.is_block_device:
            with self._size_lock:
                self._size = max(self._size, os.fstat(self._fd).st_size)

    def _grown_to(self, end: int) -> None:
        with self._size_lock:
            self._size = max(self._size, end)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        beyond = offset + length - self._size
        if beyond > 0:  # extending is zeroing
            self._extend(offset + length)
            length = max(length - beyond, 0)
        if length and not self._zero_range(offset, length, unmap):
            super()._write_zeroes(offset, length, unmap)

    def _extend(self, end: int) -> None:
        """Make the file at least so long, by writing the last of the bytes that are to be zero.

        Another thread may just have written behind ``end``: that ftruncate would cut off.
        """
        if self.is_block_device:
            self._truncate(end)
        else:
            self._writev(end - 1, [memoryview(b"\0")])

    def _zero_range(self, offset: int, length: int, unmap: bool) -> bool:
        """Let the system zero the range; False where it cannot."""
        try:
            if self.is_block_device:
                _linux.block_device_zero(self._fd, offset, length)
            elif unmap:
                mode = _linux.FALLOC_FL_PUNCH_HOLE | _linux.FALLOC_FL_KEEP_SIZE
                _linux.fallocate(self._fd, mode, offset, length)
            else:
                _linux.fallocate(self._fd, _linux.FALLOC_FL_ZERO_RANGE, offset, length)
        except OSError as error:
            if error.errno in _linux.UNSUPPORTED:
                return False
            raise from_os_error(
                error, path=self.name, operation="write zeroes", offset=offset
            ) from error
        return True

    def _copy_from(self, offset: int, source: BlockDevice, source_offset: int, length: int) -> int:
        """copy_file_range: shares the blocks where the file system can (reflink)."""
        call = getattr(os, "copy_file_range", None)
        if call is None or not isinstance(source, FileStore):
            return 0
        done = 0
        try:
            while done < length:
                count = call(
                    source.fileno(), self._fd, length - done, source_offset + done, offset + done
                )
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno not in _linux.UNSUPPORTED:
                self._look_at_size()
                raise from_os_error(
                    error, path=self.name, operation="copy", offset=offset
                ) from error
        if offset + done > self._size:
            self._grown_to(offset + done)
        return done

    def _discard(self, offset: int, length: int) -> None:
        length = min(length, self._size - offset)
        if length <= 0:
            return
        try:
            if self.is_block_device:
                _linux.block_device_discard(self._fd, offset, length)
            else:
                mode = _linux.FALLOC_FL_PUNCH_HOLE | _linux.FALLOC_FL_KEEP_SIZE
                _linux.fallocate(self._fd, mode, offset, length)
        except OSError as error:
            if error.errno not in _linux.UNSUPPORTED:
                raise from_os_error(
                    error, path=self.name, operation="discard", offset=offset
                ) from error

    def allocate(self, offset: int, length: int) -> None:
        """Reserve room for the range without writing it (posix_fallocate); it reads as zeroes.

        Raises :class:`NoSpaceError` when the disk cannot hold it.
        """
        self._check_write("allocate", offset, length)
        if not length:
            return
        try:
            os.posix_fallocate(self._fd, offset, length)
        except OSError as error:
            self._look_at_size()
            raise from_os_error(
                error, path=self.name, operation="allocate", offset=offset
            ) from error
        self._grown_to(offset + length)

    def _flush(self) -> None:
        if self._ignore_flush:
            return
        if self._lost is not None:
            raise from_os_error(self._lost, path=self.name, operation="flush") from self._lost
        try:
            getattr(os, "fdatasync", os.fsync)(self._fd)
        except OSError as error:
            self._lost = error
            raise from_os_error(error, path=self.name, operation="flush") from error

    def hint_layout(self, *, extent_size: int = 0, nocow: bool = False) -> None:
        """How the file system should lay out a new file; one that has no such choice ignores it.

        ``extent_size``: bytes it allocates at a time (XFS).  ``nocow``: writes are made in place
        (btrfs).
        """
        if not sys.platform.startswith("linux"):
            return
        with contextlib.suppress(OSError):
            if extent_size:
                _linux.set_extent_size(self._fd, extent_size)
        with contextlib.suppress(OSError):
            if nocow:
                _linux.set_nocow(self._fd)

    def _truncate(self, size: int) -> None:
        if self.is_block_device:
            if size > self._size:
                raise InvalidRequestError(
                    f"a block device of {self._size} bytes cannot grow to {size}", path=self.name
                )
            return
        with self._size_lock:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                raise from_os_error(error, path=self.name, operation="resize") from error
            self._size = size

    def _close(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._locked_by == os.getpid():  # a forked child shares the locks and leaves them alone
            _locks.unlock_image(self._fd)
        os.close(self._fd)


def _requests(views: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    """The buffers in groups, and long ones in parts, of what one ``pwritev`` takes."""
    if len(views) == 1 and len(views[0]) <= _LARGEST_WRITE:
        yield views
        return
    group: list[memoryview] = []
    room = _LARGEST_WRITE
    for view in views:
        start = 0
        while start < len(view):
            whole = not start and len(view) <= room
            part = view if whole else view[start : start + room]
            group.append(part)
            start += len(part)
            room -= len(part)
            if not room or len(group) == _IOV_MAX:
                yield group
                group, room = [], _LARGEST_WRITE
    if group:
        yield group


class DirectFileStore(FileStore):
    """A file opened with O_DIRECT: the page cache is passed by.

    The kernel wants offset, length and memory aligned; this class takes any request, through
    an aligned bounce buffer, and serialises writes because their edges are read-modify-write.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        readonly: bool = True,
        locked: bool = True,
        create: bool = False,
        write_through: bool = False,
        ignore_flush: bool = False,
    ) -> None:
        super().__init__(
            path,
            readonly=readonly,
            locked=locked,
            create=create,
            write_through=write_through,
            ignore_flush=ignore_flush,
            extra_flags=getattr(os, "O_DIRECT", 0),
        )
        self.prompt = False
        self._bounce = memoryview(mmap.mmap(-1, _BOUNCE_SIZE + 2 * DIRECT_ALIGNMENT))
        self._bounce_lock = threading.Lock()

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            for start in range(0, len(view), _BOUNCE_SIZE):
                part = view[start : start + _BOUNCE_SIZE]
                with self._bounce_lock:
                    first = self._fill(offset + start, len(part))
                    part[:] = self._bounce[first : first + len(part)]
            offset += len(view)

    def _fill(self, offset: int, length: int) -> int:
        """Read the aligned range around the request; where in the buffer the request begins."""
        start = round_down(offset, DIRECT_ALIGNMENT)
        stop = round_up(offset + length, DIRECT_ALIGNMENT)
        super()._readv(start, [self._bounce[: stop - start]])
        return offset - start

    def _read_rest(self, offset: int, views: Sequence[memoryview], done: int) -> None:
        """A short read that stops inside a block has met the end of the file.

        Asking again, from there, would not be aligned, and some file systems refuse that.
        """
        if (offset + done) % DIRECT_ALIGNMENT:
            fill_zeroes(views[0][done:])  # the bounce buffer is the only one
        else:
            super()._read_rest(offset, views, done)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            for start in range(0, len(view), _BOUNCE_SIZE):
                with self._bounce_lock:
                    self._write_around(offset + start, view[start : start + _BOUNCE_SIZE])
            offset += len(view)

    def _extend(self, end: int) -> None:
        """Nobody else writes meanwhile, so nothing can be cut off."""
        with self._bounce_lock:
            if end > self._size:
                self._truncate(end)

    def _copy_from(self, offset: int, source: BlockDevice, source_offset: int, length: int) -> int:
        with self._bounce_lock:
            return super()._copy_from(offset, source, source_offset, length)

    def _write_around(self, offset: int, part: memoryview) -> None:
        size = max(self._size, offset + len(part))
        first = 0
        if offset % DIRECT_ALIGNMENT or len(part) % DIRECT_ALIGNMENT:
            first = self._fill(offset, len(part))
        self._bounce[first : first + len(part)] = part
        start = offset - first
        length = round_up(first + len(part), DIRECT_ALIGNMENT)
        super()._writev(start, [self._bounce[:length]])
        if self._size > size:  # the padding of the last block went past the end
            self._truncate(size)

    def _close(self) -> None:
        super()._close()
        self._bounce.release()
