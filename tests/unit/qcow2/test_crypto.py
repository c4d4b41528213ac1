"""Encrypted guest clusters of qcow2: options, hostile headers, and what threads write."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import (
    AuthenticationError,
    CorruptImageError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
)
from vdisk.formats import OpenContext
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.crypto import choose_encryption
from vdisk.formats._qcow2.header import parse
from vdisk.formats.qcow2 import DRIVER, Qcow2Image
from vdisk.stores.memory import MemoryStore

SIZE = 64 * 1024
CLUSTER = 4096
SECRETS = {"s": b"passphrase", "new": b"second"}


def create(method: str, **options: Any) -> bytes:
    file = MemoryStore()
    given = {"encrypt.format": method, "encrypt.key-secret": "s", "cluster_size": CLUSTER}
    if method == "luks":
        given |= {"encrypt.iter-time": 0, "encrypt.cipher-alg": "aes-128"}
    DRIVER.create(file, SIZE, {**given, **options}, SECRETS)
    return file.content()


@pytest.fixture(scope="module")
def empty() -> dict[str, bytes]:
    return {method: create(method) for method in ("luks", "aes")}


def open_image(content: bytes, *, readonly: bool = False, **encrypt: str) -> Qcow2Image:
    options = {"encrypt": {"key-secret": "s", **encrypt}}
    context = OpenContext(readonly=readonly, options=options, secrets=SECRETS)
    return DRIVER.open(MemoryStore(content, name="disk.qcow2"), context)


def options(**values: Any) -> dict[str, Any]:
    return {f"encrypt.{name.replace('_', '-')}": value for name, value in values.items()}


methods = pytest.mark.parametrize("method", ["luks", "aes"])


@methods
@given(data=st.data())
def test_any_writes_read_back(empty: dict[str, bytes], method: str, data: st.DataObject):
    file = MemoryStore(empty[method])
    context = OpenContext(readonly=False, options={"encrypt.key-secret": "s"}, secrets=SECRETS)
    image = DRIVER.open(file, context)
    model = bytearray(SIZE)
    for number in range(data.draw(st.integers(1, 8))):
        offset = data.draw(st.integers(0, SIZE - 1))
        length = min(data.draw(st.integers(1, 3 * CLUSTER)), SIZE - offset)
        action = data.draw(st.sampled_from(["write", "zero", "snapshot"]))
        if action == "write":
            image.write(offset, bytes([number + 1]) * length)
            model[offset : offset + length] = bytes([number + 1]) * length
        elif action == "zero":
            image.write_zeroes(offset, length, unmap=data.draw(st.booleans()))
            model[offset : offset + length] = bytes(length)
        else:
            image.create_snapshot(f"{number}")
        assert image.read(offset, length) == model[offset : offset + length]
    assert image.read(0, SIZE) == model
    image.close()
    assert open_image(file.content(), readonly=True).read(0, SIZE) == model


@methods
def test_threads_that_share_sectors(empty: dict[str, bytes], method: str):
    image = open_image(empty[method])

    def write(lane: int) -> None:
        for position in range(lane * 100, SIZE - 100, 400):
            image.write(position, bytes([lane + 1]) * 100)

    threads = [threading.Thread(target=write, args=(lane,)) for lane in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    expected = b"".join(bytes([lane + 1]) * 100 for lane in range(4)) * (SIZE // 400)
    assert image.read(0, len(expected)) == expected


@methods
def test_what_the_ciphertext_depends_on(empty: dict[str, bytes], method: str):
    """Equal data differs at each guest offset, and for LUKS at each host offset, too."""
    image = open_image(empty[method])
    image.write(0, b"\x55" * 2 * CLUSTER)
    first = stored(image, 0)
    assert first != b"\x55" * 512
    assert stored(image, CLUSTER) != first
    image.create_snapshot("before")
    image.write(0, b"\x55" * CLUSTER)  # the same again, into another host cluster
    assert (stored(image, 0) == first) == (method == "aes")


def stored(image: Qcow2Image, guest: int) -> bytes:
    """The bytes of a guest sector as they stand in the file."""
    device, offset = image.locate(guest, 512)
    return image.file.read(device._base + offset, 512)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (options(key_secret="s"), InvalidRequestError, "encrypt.format=luks or aes"),
        (options(format="rot13"), InvalidRequestError, "encrypt.format=luks or aes"),
        (options(format="luks"), AuthenticationError, "option encrypt.key-secret"),
        (options(format="aes"), AuthenticationError, "option encrypt.key-secret"),
        (options(format="aes", key_secret="x"), NotFoundError, "No secret with id 'x'"),
        (options(format="aes", key_secret="s", iter_time=1), InvalidRequestError, "no options but"),
        (
            options(format="luks", key_secret="s", cipher_alg="serpent-256"),
            UnsupportedFeatureError,
            "serpent-256",
        ),
    ],
)
def test_creation_options(given: dict[str, Any], error: type[Exception], message: str):
    file = MemoryStore(b"precious")
    with pytest.raises(error, match=message):
        DRIVER.create(file, SIZE, given, SECRETS)
    assert file.content() == b"precious"


def test_size_of_the_encryption_header():
    assert choose_encryption({"cluster_size": 65536}) is None
    luks = choose_encryption(options(format="luks"))
    aes = choose_encryption(options(format="aes"))
    assert luks is not None
    assert aes is not None
    assert (luks.header_size, aes.header_size) == (2068480, 0)


def test_run_time_options(empty: dict[str, bytes]):
    open_image(empty["luks"], format="luks")
    with pytest.raises(InvalidRequestError, match="is luks, not 'aes'"):
        open_image(empty["luks"], format="aes")
    with pytest.raises(InvalidRequestError, match="no option 'colour'"):
        open_image(empty["luks"], colour="red")
    with pytest.raises(AuthenticationError, match="Invalid password"):
        open_image(empty["luks"], **{"key-secret": "new"})
    with pytest.raises(NotFoundError, match="No secret with id 'x'"):
        open_image(empty["aes"], **{"key-secret": "x"})
    plain = MemoryStore()
    DRIVER.create(plain, SIZE, {})
    with pytest.raises(InvalidRequestError, match=r"not encrypted, but encrypt\.key-secret"):
        open_image(plain.content())
    with pytest.raises(InvalidRequestError, match="is none, not 'luks'"):
        DRIVER.open(plain, OpenContext(options={"encrypt.format": "luks"}))


@methods
def test_locked_images(empty: dict[str, bytes], method: str):
    file = MemoryStore(empty[method])
    image = DRIVER.open(file, OpenContext(readonly=False))
    assert image.read(0, 1000) == bytes(1000)  # nothing is allocated
    with pytest.raises(AuthenticationError, match=r"option encrypt\.key-secret"):
        image.write(0, b"x")
    assert image.format_info()["encrypt"]["format"] == method
    image.close()
    report = open_image(file.content()).check()
    assert (report.leaks, report.corruptions) == (0, 0)


def test_amend(empty: dict[str, bytes]):
    image = open_image(empty["luks"])
    image.amend(options(state="active", new_secret="new", iter_time=0))
    image.amend(options(state="inactive", old_secret="s"))
    with pytest.raises(InvalidRequestError, match="only active"):
        image.amend(options(state="inactive", keyslot=1))
    image.amend(options(state="inactive", keyslot=1), force=True)
    assert not any(slot["active"] for slot in image.format_info()["encrypt"]["slots"])
    with pytest.raises(UnsupportedFeatureError, match="aes has no key slots"):
        open_image(empty["aes"]).amend(options(state="active", new_secret="new"))
    plain = MemoryStore()
    DRIVER.create(plain, SIZE, {})
    with pytest.raises(InvalidRequestError, match="not encrypted"):
        DRIVER.open(plain, OpenContext(readonly=False)).amend(options(state="inactive", keyslot=1))


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        (None, 0, "cut short: 0|magic is missing"),
        (None, 600, "past the end"),
        (None, 1 << 63, "reaches past the end"),
        (0, None, "cluster boundary"),
        (CLUSTER + 1, None, "cluster boundary"),
        (1 << 40, None, "reaches past the end"),
        (CLUSTER, None, "magic is missing"),
    ],
)
def test_hostile_places_of_the_encryption_header(
    empty: dict[str, bytes], offset: int | None, length: int | None, message: str
):
    content = bytearray(empty["luks"])
    header = parse(bytes(content[:CLUSTER]), path="disk.qcow2")
    assert header.crypt_method == layout.CRYPT_LUKS
    assert header.crypto is not None
    honest = header.crypto
    header.crypto = (
        honest[0] if offset is None else offset,
        honest[1] if length is None else length,
    )
    content[:CLUSTER] = header.to_bytes()
    with pytest.raises(CorruptImageError, match=message):
        open_image(bytes(content))
