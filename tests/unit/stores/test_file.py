"""Files as block devices: holes, growth, short reads, odd requests past the page cache."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.block import Extent, Kind
from vdisk.errors import (
    ClosedError,
    DeviceError,
    InvalidRequestError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
    VdiskError,
)
from vdisk.stores import _linux, file
from vdisk.stores.file import DirectFileStore, FileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK = 1 << 16  # no file system that tests run on has larger ones


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


def supports_direct_io(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


@pytest.fixture(params=[FileStore, DirectFileStore])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[FileStore]:
    """An empty writable file, once with and once past the page cache."""
    if request.param is DirectFileStore and not supports_direct_io(path):
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    with request.param(path, readonly=False, create=True) as opened:
        yield opened


# -- content -------------------------------------------------------------------------------------


def test_what_is_written_is_in_the_file(store: FileStore, path: Path) -> None:
    store.write(3, b"abc")
    store.writev(6, [b"de", b"", bytearray(b"f")])
    assert path.read_bytes() == b"\0\0\0abcdef"
    assert store.size == 9
    assert store.read(2, 5) == b"\0abcd"


def test_bytes_past_the_end_read_as_zeroes(store: FileStore) -> None:
    store.write(0, b"abc")
    assert store.read(1, 10_000) == b"bc" + bytes(9_998)
    buffers = [bytearray(b"\xee" * 2), bytearray(b"\xee" * 5), bytearray(b"\xee" * 5000)]
    store.readv(0, buffers)
    assert buffers == [b"ab", b"c" + bytes(4), bytes(5000)]
    assert store.size == 3


def test_more_buffers_than_one_system_call_takes(store: FileStore, path: Path) -> None:
    pieces = [bytes([n % 251]) * 3 for n in range(3000)]
    store.writev(1, pieces)
    assert path.read_bytes() == b"\0" + b"".join(pieces)
    buffers = [bytearray(3) for _ in pieces]
    store.readv(1, buffers)
    assert buffers == pieces


def test_system_calls_that_do_part_of_the_work_are_continued(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_byte_of(call: Callable[..., int]) -> Callable[..., int]:
        def partial(fd: int, buffers: list[memoryview], offset: int) -> int:
            first = next(buffer for buffer in buffers if len(buffer))
            return call(fd, [first[:1]], offset)

        return partial

    pwrite = os.pwrite
    with FileStore(path, readonly=False, create=True) as store:
        monkeypatch.setattr(os, "preadv", one_byte_of(os.preadv))
        monkeypatch.setattr(os, "pwritev", one_byte_of(os.pwritev))
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:2], at))
        store.writev(2, [b"abc", b"defg"])
        assert path.read_bytes() == b"\0\0abcdefg"
        buffers = [bytearray(4), bytearray(1), bytearray(7)]
        store.readv(0, buffers)
        assert buffers == [b"\0\0ab", b"c", b"defg\0\0\0"]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "zero-keep", "truncate"]),
        st.integers(0, 40_000),
        st.integers(0, 20_000),
    ),
    max_size=8,
)


@pytest.mark.parametrize("kind", [FileStore, DirectFileStore])
@given(operations=OPERATIONS)
def test_any_sequence_of_changes_leaves_what_a_bytearray_would_hold(
    tmp_path_factory: pytest.TempPathFactory,
    kind: type[FileStore],
    operations: list[tuple[str, int, int]],
) -> None:
    path = tmp_path_factory.mktemp("file") / "image"
    if kind is DirectFileStore and not supports_direct_io(path):
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    model = MemoryStore()
    with kind(path, readonly=False, create=True) as store:
        for number, (operation, offset, length) in enumerate(operations, 1):
            for device in (store, model):
                if operation == "write":
                    device.write(offset, bytes([number]) * length)
                elif operation == "truncate":
                    device.truncate(offset)
                else:
                    device.write_zeroes(offset, length, unmap=operation == "zero")
            assert store.size == model.size
            assert store.read(offset // 2, 30_000) == model.read(offset // 2, 30_000)
        assert path.read_bytes() == model.content()


def test_writes_from_several_threads_are_all_kept(store: FileStore, path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: store.write(n * 1000, bytes([n]) * 1000), range(100)))
    assert path.read_bytes() == b"".join(bytes([n]) * 1000 for n in range(100))
    assert store.size == 100_000


# -- holes ---------------------------------------------------------------------------------------


def test_the_map_shows_holes_and_data(store: FileStore) -> None:
    store.truncate(4 * BLOCK)
    store.write(BLOCK, bytes([1]) * BLOCK)
    assert list(store.map()) == [
        Extent(0, BLOCK, Kind.ZERO, store, 0),
        Extent(BLOCK, BLOCK, Kind.DATA, store, BLOCK),
        Extent(2 * BLOCK, 2 * BLOCK, Kind.ZERO, store, 2 * BLOCK),
    ]
    assert list(store.map(BLOCK + 5, BLOCK)) == [
        Extent(BLOCK + 5, BLOCK - 5, Kind.DATA, store, BLOCK + 5),
        Extent(2 * BLOCK, 5, Kind.ZERO, store, 2 * BLOCK),
    ]


def test_the_map_goes_on_past_the_end(store: FileStore) -> None:
    store.truncate(BLOCK)
    assert list(store.map(BLOCK - 1, 3)) == [
        Extent(BLOCK - 1, 1, Kind.ZERO, store, BLOCK - 1),
        Extent(BLOCK, 2, Kind.HOLE),
    ]


@pytest.mark.parametrize("number", [errno.EINVAL, None])
def test_without_seek_hole_all_is_data(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    store.truncate(BLOCK)
    if number is None:
        monkeypatch.delattr(os, "SEEK_DATA")
    else:

        def refuse(_fd: int, _offset: int, _whence: int) -> int:
            raise OSError(number, "no")

        monkeypatch.setattr(os, "lseek", refuse)
    assert list(store.map()) == [Extent(0, BLOCK, Kind.DATA, store, 0)]


def test_a_file_that_another_process_cuts_off_ends_in_a_hole(store: FileStore, path: Path) -> None:
    store.write(0, bytes([1]) * BLOCK)
    os.truncate(path, 0)
    assert list(store.map()) == [Extent(0, BLOCK, Kind.ZERO, store, 0)]


@pytest.mark.parametrize("punch", ["discard", "write_zeroes"])
def test_room_is_given_back(store: FileStore, punch: str) -> None:
    store.write(0, bytes([1]) * (8 * BLOCK))
    store.flush()
    before = store.allocated_size
    getattr(store, punch)(BLOCK, 6 * BLOCK)
    assert before is not None
    assert store.allocated_size is not None
    assert store.allocated_size <= before - 6 * BLOCK
    assert store.read(0, 8 * BLOCK) == bytes([1]) * BLOCK + bytes(6 * BLOCK) + bytes([1]) * BLOCK


def test_zeroes_that_must_keep_their_room(store: FileStore) -> None:
    store.write(0, bytes([1]) * (8 * BLOCK))
    store.flush()
    store.write_zeroes(0, 8 * BLOCK, unmap=False)
    assert store.read(0, 8 * BLOCK) == bytes(8 * BLOCK)
    assert store.allocated_size is not None
    assert store.allocated_size >= 8 * BLOCK


def test_a_system_without_fallocate_writes_zeroes_and_keeps_what_is_discarded(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_linux.sys, "platform", "elsewhere")
    store.write(0, b"abcdef")
    store.discard(0, 6)
    store.write_zeroes(1, 2)
    store.write_zeroes(4, 4)
    assert store.read(0, 8) == b"a\0\0d\0\0\0\0"
    assert store.size == 8


def test_discard_never_grows_the_file(store: FileStore) -> None:
    store.write(0, b"abc")
    store.discard(10, 10)
    store.discard(1, 100)
    assert store.size == 3
    assert store.read(0, 1) == b"a"


def test_room_is_reserved(store: FileStore) -> None:
    store.allocate(0, 4 * BLOCK)
    assert store.size == 4 * BLOCK
    assert store.allocated_size is not None
    assert store.allocated_size >= 4 * BLOCK
    assert store.read(0, 4 * BLOCK) == bytes(4 * BLOCK)


# -- copying -------------------------------------------------------------------------------------


def test_the_system_copies_between_files(tmp_path: Path, path: Path) -> None:
    content = os.urandom(3 * BLOCK)
    (tmp_path / "source").write_bytes(content)
    with (
        FileStore(tmp_path / "source") as source,
        FileStore(path, readonly=False, create=True) as target,
    ):
        copied = target.copy_from(10, source, BLOCK, 2 * BLOCK)
        assert target.read(10, copied) == content[BLOCK : BLOCK + copied]
        assert target.size == 10 + copied
        assert target.copy_from(0, MemoryStore(b"abc"), 0, 3) == 0


# -- opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing", "missing/folder", "nul\0inside"])
def test_a_name_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        FileStore(f"{tmp_path}/{name}")
    assert caught.value.operation == "open" or "\0" in name


def test_folders_and_pipes_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, readonly in ((".", True), ("pipe", False)):
        with pytest.raises(InvalidRequestError, match=r"directory|to be a regular file"):
            FileStore(tmp_path / name, readonly=readonly)


def test_a_file_without_permission(path: Path) -> None:
    path.touch(mode=0o400)
    if os.access(path, os.W_OK):
        pytest.skip("root may write everything")
    with pytest.raises(DeviceError) as caught:
        FileStore(path, readonly=False)
    assert caught.value.errno == errno.EACCES


def test_creating_empties_an_old_file_and_opening_does_not(path: Path) -> None:
    path.write_bytes(b"abc")
    with FileStore(path, readonly=False) as store:
        assert store.size == 3
    with FileStore(path, readonly=False, create=True) as store:
        assert store.size == 0


def test_failed_openings_leave_no_descriptor(path: Path, tmp_path: Path) -> None:
    before = set(os.listdir("/dev/fd"))
    with FileStore(path, readonly=False, create=True):
        for name in (path, tmp_path):
            with pytest.raises(VdiskError):
                FileStore(name, readonly=name == tmp_path)
    assert set(os.listdir("/dev/fd")) == before


def test_read_only_and_closed_files_are_not_written(path: Path) -> None:
    path.write_bytes(b"abc")
    store = FileStore(path)
    with pytest.raises(ReadOnlyError):
        store.write(0, b"x")
    with pytest.raises(ReadOnlyError):
        store.allocate(0, 1)
    store.close()
    with pytest.raises(ClosedError):
        store.read(0, 1)
    assert path.read_bytes() == b"abc"


# -- failing devices -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("preadv", lambda store: store.read(8, 1)),
        ("pwritev", lambda store: store.write(8, b"x")),
        ("ftruncate", lambda store: store.truncate(8)),
        ("posix_fallocate", lambda store: store.allocate(8, 1)),
    ],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_errors_of_the_system_name_file_operation_and_number(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    use: Callable[[FileStore], None],
    number: int,
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with FileStore(path, readonly=False, create=True) as store, monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(DeviceError) as caught:
            use(store)
        patch.undo()
    assert caught.value.errno == number
    assert caught.value.path == str(path)
    assert caught.value.operation
    assert isinstance(caught.value, NoSpaceError) == (number == errno.ENOSPC)


def test_a_flush_that_failed_is_not_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reports a lost write to one fdatasync only, and then takes the page for clean."""

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = FileStore(path, readonly=False, create=True)
    store.write(0, b"lost")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(NoSpaceError, match="cannot flush"):
            store.flush()
    for again in (store.flush, store.flush, store.close):
        with pytest.raises(NoSpaceError, match="cannot flush"):
            again()
    assert store.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(store.fileno())


def test_zeroing_covers_what_a_failed_write_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        os.pwrite(descriptor, bytes(buffers[0])[:100], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with FileStore(path, readonly=False, create=True) as store:
        store.write(0, b"begin")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", fill_up)
            with pytest.raises(NoSpaceError):
                store.write(1000, b"x" * 500)
        assert store.size == 1100
        store.write_zeroes(1000, 500)
        assert store.read(1000, 500) == bytes(500)


def test_a_full_disk_fails_zeroing_and_punching_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(_linux, "fallocate", full)
    with FileStore(path, readonly=False, create=True) as store:
        store.write(0, b"abc")
        with pytest.raises(NoSpaceError):
            store.write_zeroes(0, 3)
        with pytest.raises(NoSpaceError):
            store.discard(0, 3)


def test_flush_can_be_ignored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with FileStore(path, readonly=False, create=True, ignore_flush=True) as store:
        store.write(0, b"abc")
    assert synced == []
    with FileStore(path, readonly=False):
        pass
    assert len(synced) == 1


def test_requests_larger_than_the_bounce_buffer(path: Path) -> None:
    if not supports_direct_io(path):
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    content = os.urandom(3 * file._BOUNCE_SIZE + 17)
    with DirectFileStore(path, readonly=False, create=True) as store:
        store.write(5, content)
        assert store.read(5, len(content)) == content
        assert store.size == len(content) + 5
    assert path.read_bytes() == bytes(5) + content


class Busy(FileStore):
    """Another thread always writes just before the file is extended."""

    def _extend(self, end: int) -> None:
        os.pwrite(self.fileno(), b"theirs", end + BLOCK)
        super()._extend(end)


def test_zeroes_at_the_end_cut_off_nothing_that_was_written_behind_them(path: Path) -> None:
    with Busy(path, readonly=False, create=True) as store:
        store.write_zeroes(0, BLOCK)
        assert os.pread(store.fileno(), 6, 2 * BLOCK) == b"theirs"
        assert store.read(0, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("kind", [FileStore, DirectFileStore])
def test_threads_that_extend_a_file_lose_nothing(path: Path, kind: type[FileStore]) -> None:
    if kind is DirectFileStore and not supports_direct_io(path):
        pytest.skip("no O_DIRECT here")
    with kind(path, readonly=False, create=True) as store:

        def extend(number: int) -> None:
            if number % 2:
                store.write_zeroes(number * BLOCK, BLOCK)
            else:
                store.write(number * BLOCK, bytes([number]) * BLOCK)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(extend, range(1, 200)))
        assert store.size == 200 * BLOCK
        for number in range(2, 200, 2):
            assert store.read(number * BLOCK, BLOCK) == bytes([number]) * BLOCK
