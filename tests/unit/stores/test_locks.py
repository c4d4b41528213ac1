"""Locks between two users of vdisk; tests/interop/test_locks.py has those with QEMU."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from vdisk.errors import DeviceError, ImageLockedError
from vdisk.stores import _locks
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"abc")
    return path


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [("r", "r", True), ("r", "w", False), ("w", "r", False), ("w", "w", False)],
)
def test_a_writer_is_alone_and_readers_are_not(
    path: Path, first: str, second: str, together: bool
) -> None:
    with FileStore(path, readonly=first == "r"):
        if together:
            FileStore(path, readonly=second == "r").close()
        else:
            with pytest.raises(ImageLockedError) as caught:
                FileStore(path, readonly=second == "r")
            assert caught.value.errno == errno.EAGAIN
    FileStore(path, readonly=second == "r").close()


def test_opening_without_locks_is_seen_by_nobody(path: Path) -> None:
    with FileStore(path, readonly=False), FileStore(path, locked=False) as other:
        assert other.read(0, 3) == b"abc"
    with FileStore(path, readonly=False, locked=False), FileStore(path, readonly=False):
        pass


def test_creating_does_not_empty_a_file_in_use(path: Path) -> None:
    with FileStore(path), pytest.raises(ImageLockedError):
        FileStore(path, readonly=False, create=True)
    assert path.read_bytes() == b"abc"


def test_a_file_system_without_locks_is_used_without(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _kind: int, _first: int, _count: int = 1) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(_locks, "_set", refuse)
    FileStore(path, readonly=False).close()


@pytest.fixture
def copies() -> Iterator[list[int]]:
    """Descriptors that a child process has until it calls ``exec``, closed in the end."""
    held: list[int] = []
    yield held
    for descriptor in held:
        os.close(descriptor)


def test_closing_gives_the_locks_back_whoever_has_a_copy_of_the_descriptor(
    path: Path, copies: list[int]
) -> None:
    with FileStore(path, readonly=False) as store:
        copies.append(os.dup(store.fileno()))
    FileStore(path, readonly=False).close()


def test_a_refused_opening_holds_nothing_whoever_has_a_copy(
    path: Path, copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close
    with FileStore(path):
        monkeypatch.setattr(os, "close", copies.append)
        with pytest.raises(ImageLockedError):
            FileStore(path, readonly=False)
        monkeypatch.setattr(os, "close", close)
    assert len(copies) == 1
    FileStore(path, readonly=False).close()


def test_a_forked_child_leaves_the_locks_to_its_parent(
    path: Path, copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(path, readonly=False)
    copies.append(os.dup(store.fileno()))
    monkeypatch.setattr(os, "getpid", lambda: 0)
    store.close()
    with pytest.raises(ImageLockedError):
        FileStore(path)


def test_a_failing_lock_fails_the_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int, _kind: int, _first: int, _count: int = 1) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(_locks, "_set", fail)
    with pytest.raises(DeviceError):
        FileStore(path)
