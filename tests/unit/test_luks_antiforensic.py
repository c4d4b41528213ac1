"""The anti-forensic splitter."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from vdisk.formats._luks import antiforensic
from vdisk.formats._luks.specification import HASHES, Hash

hashes = st.sampled_from(HASHES).map(Hash)
keys = st.binary(min_size=1, max_size=64)
stripes = st.integers(1, 40)


@given(keys, stripes, hashes)
def test_merging_gives_back_what_was_split(key: bytes, count: int, hash: Hash):
    material = antiforensic.split(key, count, hash)
    assert len(material) == len(key) * count
    assert antiforensic.merge(material, len(key), count, hash) == key


@given(st.binary(min_size=16, max_size=64), st.integers(2, 20), hashes, st.data())
def test_one_lost_byte_loses_the_key(key: bytes, count: int, hash: Hash, data: st.DataObject):
    material = bytearray(antiforensic.split(key, count, hash))
    material[data.draw(st.integers(0, len(material) - 1))] ^= 0x01
    assert antiforensic.merge(bytes(material), len(key), count, hash) != key


def test_two_stripes_by_hand():
    """A key of 40 bytes is diffused as 32 + 8 bytes with SHA-256."""
    key, noise = bytes(range(40)), bytes(range(100, 140))
    material = antiforensic.split(key, 2, Hash("sha256"), lambda size: noise[:size])
    diffused = hashlib.sha256(bytes(4) + noise[:32]).digest()
    diffused += hashlib.sha256(b"\0\0\0\x01" + noise[32:]).digest()[:8]
    assert material[:40] == noise
    assert bytes(a ^ b for a, b in zip(material[40:], diffused, strict=True)) == key


def test_one_stripe_is_the_key_itself():
    assert antiforensic.split(b"key", 1, Hash("sha1")) == b"key"
