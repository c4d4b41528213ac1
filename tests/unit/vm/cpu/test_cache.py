"""Compiled code is kept whole or not used at all."""

from __future__ import annotations

import os

import pytest

from vdisk.vm.cpu.cache import HEADER, CodeCache, digest


@pytest.fixture
def cache(tmp_path):
    return CodeCache(str(tmp_path / "new" / "folder"), "x")


def test_what_was_appended_is_loaded_in_order(cache):
    cache.append(["a", "b"], b"first")
    cache.append(["c"], b"second")
    assert list(cache.load()) == [(["a", "b"], b"first"), (["c"], b"second")]


def test_nothing_is_loaded_behind_damage(cache):
    for name in "abc":
        cache.append([name], name.encode() * 100)
    with open(cache.path, "r+b") as file:
        file.seek(HEADER.size + 1 + 100 + HEADER.size + 20)
        file.write(b"!")
    assert list(cache.load()) == [(["a"], b"a" * 100)]


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size + 3])
def test_an_entry_cut_off_is_not_used(cache, cut):
    cache.append(["a"], b"whole")
    size = os.path.getsize(cache.path)
    cache.append(["b"], b"cut")
    os.truncate(cache.path, size + cut)
    assert list(cache.load()) == [(["a"], b"whole")]


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_code_that_others_may_write_is_not_loaded(cache, mode):
    cache.append(["a"], b"code")
    os.chmod(cache.path, mode)
    assert not list(cache.load())


def test_a_directory_that_cannot_be_made_keeps_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = CodeCache(str(tmp_path / "file" / "below"), "x")
    cache.append(["a"], b"code")
    assert not list(cache.load())


def test_no_directory_keeps_nothing():
    cache = CodeCache(None, "x")
    cache.append(["a"], b"code")
    assert not list(cache.load())


def test_the_digest_depends_on_each_word():
    assert len({digest("a", "b"), digest("ab"), digest("a", "c")}) == 3
