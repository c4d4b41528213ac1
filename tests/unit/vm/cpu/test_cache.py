"""Compiled code is kept whole or not used at all."""

from __future__ import annotations

import os

import pytest

from vdisk.vm.cpu import cache as module
from vdisk.vm.cpu.cache import HEADER, CodeCache, default_directory, digest, prune


@pytest.fixture
def cache(tmp_path):
    return CodeCache(str(tmp_path / "new" / "folder"), "x")


def content(cache: CodeCache) -> list[tuple[bytes, bytes | None]]:
    return [(entry.label, entry.code()) for entry in cache.load()]


def damage(cache: CodeCache, place: int) -> None:
    assert cache.path is not None
    with open(cache.path, "r+b") as file:
        file.seek(place)
        file.write(b"!")


def test_what_was_appended_is_loaded_in_order(cache):
    cache.append(b"a\nb", b"first")
    cache.append(b"c", b"second")
    assert content(cache) == [(b"a\nb", b"first"), (b"c", b"second")]


def test_damaged_code_is_not_used(cache):
    for name in (b"a", b"b", b"c"):
        cache.append(name, name * 100)
    damage(cache, HEADER.size + 1 + 100 + HEADER.size + 20)
    assert content(cache) == [(b"a", b"a" * 100), (b"b", None), (b"c", b"c" * 100)]


@pytest.mark.parametrize("place", [0, HEADER.size], ids=["header", "label"])
def test_a_file_is_cut_off_at_an_entry_that_is_damaged(cache, place):
    cache.append(b"a", b"whole")
    size = os.path.getsize(cache.path)
    cache.append(b"b", b"damaged")
    damage(cache, size + place)
    assert content(cache) == [(b"a", b"whole")]
    assert os.path.getsize(cache.path) == size
    cache.append(b"c", b"later")
    assert content(cache) == [(b"a", b"whole"), (b"c", b"later")]


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size + 3])
def test_an_entry_cut_off_is_not_used(cache, cut):
    cache.append(b"a", b"whole")
    size = os.path.getsize(cache.path)
    cache.append(b"b", b"cut")
    os.truncate(cache.path, size + cut)
    assert content(cache) == [(b"a", b"whole")]


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_code_that_others_may_write_is_not_loaded(cache, mode):
    cache.append(b"a", b"code")
    os.chmod(cache.path, mode)
    assert not cache.load()


def test_a_file_that_grew_too_large_loses_its_older_half(tmp_path):
    cache = CodeCache(str(tmp_path), "x", largest=1000)
    for number in range(50):
        cache.append(b"%d" % number, b"c" * 78)
        assert os.path.getsize(cache.path) <= 1000
    labels = [int(entry.label) for entry in cache.load()]
    assert labels == list(range(labels[0], 50))
    assert len(labels) >= 5


def test_a_directory_that_cannot_be_made_keeps_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = CodeCache(str(tmp_path / "file" / "below"), "x")
    cache.append(b"a", b"code")
    assert not cache.load()


def test_no_directory_keeps_nothing():
    cache = CodeCache(None, "x")
    cache.append(b"a", b"code")
    assert not cache.load()


def test_the_digest_depends_on_each_word():
    assert len({digest("a", "b"), digest("ab"), digest("a", "c")}) == 3


def test_what_nobody_uses_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_DIRECTORY", 250)
    ages = {"new": 0, "used": 1, "large": 2, "last month": 31}
    now = 10**9
    for name, age in ages.items():
        path = tmp_path / f"code-{name}.bin"
        path.write_bytes(bytes(100))
        os.utime(path, (now - age * 86400,) * 2)
    (tmp_path / "somebody's").write_bytes(b"")
    prune(str(tmp_path), now)
    left = {"code-new.bin", "code-used.bin", "somebody's"}
    assert {path.name for path in tmp_path.iterdir()} == left
    prune(str(tmp_path / "absent"), now)


def test_loading_says_that_a_file_is_in_use(cache):
    cache.append(b"a", b"code")
    os.utime(cache.path, (0, 0))
    cache.load()
    assert os.stat(cache.path).st_mtime > 0


def test_the_directory_is_where_users_want_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_directory() == "/var/cache/vdisk"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert default_directory() == "/home/somebody/.cache/vdisk"
