"""The luks format: a device of plain bytes over an encrypted file."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk import formats
from vdisk.block import Extent, Kind
from vdisk.errors import (
    AuthenticationError,
    ClosedError,
    CorruptImageError,
    InvalidRequestError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedFeatureError,
)
from vdisk.formats import OpenContext
from vdisk.formats.luks import DRIVER, LuksImage
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from vdisk.block import BlockDevice

SIZE = 256 * 1024
SECRETS = {"s": b"passphrase"}
OPTIONS = {"key-secret": "s", "iter-time": 0}


def create(size: int = SIZE, **options: object) -> MemoryStore:
    file = MemoryStore(name="disk.luks")
    dashed = {name.replace("_", "-"): value for name, value in options.items()}
    DRIVER.create(file, size, {**OPTIONS, **dashed}, SECRETS)
    return file


@pytest.fixture(scope="module")
def empty() -> bytes:
    return create().content()


def open_image(file: BlockDevice, *, readonly: bool = False, **options: object) -> LuksImage:
    context = OpenContext(
        readonly=readonly, options={"key-secret": "s", **options}, secrets=SECRETS
    )
    return DRIVER.open(file, context)


def test_what_is_created_is_recognised_and_described(empty: bytes):
    assert formats.probe(empty) == "luks"
    assert formats.driver("luks") is DRIVER
    image = open_image(MemoryStore(empty))
    assert image.size == SIZE
    assert image.format_name == "luks"
    info = image.format_info()
    slots = info.pop("slots")
    assert slots[0] == {"active": True, "iters": 1000, "key-offset": 4096, "stripes": 4000}
    assert slots[7] == {"active": False, "key-offset": 1810432}
    assert len(info.pop("uuid")) == 36
    assert info == {
        "ivgen-alg": "plain64",
        "hash-alg": "sha256",
        "cipher-alg": "aes-256",
        "cipher-mode": "xts",
        "payload-offset": 2068480,
        "master-key-iters": 1000,
    }


def test_create_options():
    file = create(
        1000,
        cipher_alg="aes-128",
        cipher_mode="cbc",
        ivgen_alg="essiv",
        hash_alg="sha512",
        preallocation="full",
    )
    image = open_image(file)
    assert image.size == 1024
    assert file.size == image.format_info()["payload-offset"] + 1024
    info = image.format_info()
    assert info["ivgen-hash-alg"] == "sha256"
    assert info["cipher-alg"] == "aes-128"
    assert info["hash-alg"] == "sha512"
    assert DRIVER.measure(1000, {"cipher-alg": "aes-128", "cipher-mode": "cbc"}) == (
        file.size,
        file.size,
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key_secret": None}, AuthenticationError, "option key-secret"),
        ({"key_secret": "absent"}, NotFoundError, "No secret with id 'absent'"),
        ({"cipher_alg": "serpent-256"}, UnsupportedFeatureError, "serpent-256"),
        ({"cipher_alg": "aes"}, InvalidRequestError, "aes-256"),
        ({"hash_alg": "whirlpool"}, UnsupportedFeatureError, "'whirlpool'"),
        ({"ivgen_alg": "essiv", "ivgen_hash_alg": "sha1"}, UnsupportedFeatureError, "sha1"),
    ],
)
def test_options_that_cannot_work(options: dict[str, object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        create(**options)


def test_nothing_is_written_when_creating_fails():
    file = MemoryStore(b"precious")
    with pytest.raises(UnsupportedFeatureError):
        DRIVER.create(file, SIZE, {**OPTIONS, "cipher-alg": "twofish-256"}, SECRETS)
    assert file.content() == b"precious"


ranges = st.tuples(st.integers(0, SIZE), st.integers(0, 5000)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
aligned = st.tuples(st.integers(0, SIZE // 512), st.integers(0, 20)).map(
    lambda pair: (pair[0] * 512, min(pair[1] * 512, SIZE - pair[0] * 512))
)


@given(data=st.data())
def test_any_writes_read_back(empty: bytes, data: st.DataObject):
    image = open_image(MemoryStore(empty))
    image.write_zeroes(0, SIZE)
    model = bytearray(SIZE)
    for number in range(data.draw(st.integers(1, 6))):
        offset, length = data.draw(ranges | aligned)
        if data.draw(st.booleans()):
            patch = bytes([number + 1]) * length
            pieces = [patch[:700], patch[700:1212], patch[1212:]]
            image.writev(offset, pieces)
        else:
            patch = bytes(length)
            image.write_zeroes(offset, length)
        model[offset : offset + length] = patch
        at, count = data.draw(ranges | aligned)
        assert image.read(at, count) == model[at : at + count]
    views = [bytearray(1000), bytearray(512), bytearray(SIZE - 1512)]
    image.readv(0, views)
    assert b"".join(views) == model


def test_the_file_holds_no_plain_bytes(empty: bytes):
    file = MemoryStore(empty)
    image = open_image(file)
    image.write(0, b"plain text" * 1000)
    image.write_zeroes(100_000, 50_000)
    payload = file.content()[2068480:]
    assert b"plain text" not in payload
    assert payload[100_352:149_504].count(0) < 1000
    assert image.read(100_000, 50_000) == bytes(50_000)
    assert image.zeroes_fast is False


def test_the_map_leads_to_the_image_itself(empty: bytes):
    image = open_image(MemoryStore(empty))
    assert list(image.map(1000, 5000)) == [Extent(1000, 5000, Kind.DATA, image, 1000)]


def test_neighbours_in_a_sector_do_not_lose_each_others_bytes(empty: bytes):
    """Writers of parts of the same sectors, and of whole ones, all at once."""
    image = open_image(MemoryStore(empty))
    image.write_zeroes(0, SIZE)

    def write(lane: int) -> None:
        for position in range(lane * 100, 20 * 1024, 400):
            image.write(position, bytes([lane + 1]) * 100)
        for position in range(32768 + lane * 512, SIZE, 2048):
            image.write(position, bytes([lane + 1]) * 512)

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
    expected = b"".join(bytes([lane + 1]) * 100 for lane in range(4)) * 51
    assert image.read(0, len(expected)) == expected
    lanes = b"".join(bytes([lane + 1]) * 512 for lane in range(4))
    assert image.read(32768, SIZE - 32768) == lanes * ((SIZE - 32768) // 2048)


def test_resize(empty: bytes):
    file = MemoryStore(empty)
    image = open_image(file)
    image.write(SIZE - 512, b"\x55" * 512)
    image.truncate(SIZE + 10 * 512)
    assert image.size == SIZE + 5120
    assert image.read(SIZE - 512, 5632) == b"\x55" * 512 + bytes(5120)
    image.truncate(1024)
    assert file.size == 2068480 + 1024
    with pytest.raises(InvalidRequestError, match="multiple of 512"):
        image.truncate(1000)
    with pytest.raises(OutOfRangeError):
        image.read(1024, 1)
    image.close()
    assert open_image(file_again(file)).size == 1024


def file_again(file: MemoryStore) -> MemoryStore:
    return MemoryStore(file.content())


def test_a_locked_image_shows_its_header_and_keeps_its_data(empty: bytes):
    image = DRIVER.open(MemoryStore(empty), OpenContext(readonly=False))
    assert image.locked
    assert image.format_info()["cipher-alg"] == "aes-256"
    assert next(image.map()).length == SIZE
    for request in (
        lambda: image.read(0, 512),
        lambda: image.read(1, 1),
        lambda: image.write(0, b"x" * 512),
        lambda: image.write(5, b"x"),
        lambda: image.write_zeroes(0, 512),
        lambda: image.truncate(SIZE + 512),
    ):
        with pytest.raises(AuthenticationError, match="option key-secret"):
            request()
    assert image.file.content() == empty


def test_secrets_are_looked_up(empty: bytes):
    with pytest.raises(NotFoundError, match="No secret with id 't'"):
        DRIVER.open(MemoryStore(empty), OpenContext(options={"key-secret": "t"}, secrets=SECRETS))
    file = MemoryStore(empty)
    with pytest.raises(AuthenticationError, match="Invalid password"):
        DRIVER.open(file, OpenContext(options={"key-secret": "s"}, secrets={"s": b"wrong"}))
    assert file.closed
    with pytest.raises(InvalidRequestError, match="no option 'colour'"):
        open_image(MemoryStore(empty), colour="red")
    image = LuksImage(MemoryStore(empty), passphrase=b"passphrase")
    assert not image.locked


def test_readonly_and_closed(empty: bytes):
    image = open_image(MemoryStore(empty), readonly=True)
    with pytest.raises(ReadOnlyError):
        image.write(0, b"x")
    with pytest.raises(ReadOnlyError):
        image.amend({"state": "inactive", "keyslot": 0}, force=True)
    image.close()
    assert image.file.closed
    with pytest.raises(ClosedError):
        image.read(0, 1)


def test_amend(empty: bytes):
    file = MemoryStore(empty)
    image = DRIVER.open(
        file,
        OpenContext(
            readonly=False, options={"key-secret": "s"}, secrets={**SECRETS, "new": b"second"}
        ),
    )
    image.write(0, b"kept")
    steps: list[tuple[int, int]] = []
    image.amend(
        {"state": "active", "new-secret": "new", "iter-time": 0},
        progress=lambda done, total: steps.append((done, total)),
    )
    image.amend({"state": "inactive", "old-secret": "s"})
    assert steps == [(1, 1)]
    again = LuksImage(file_again(file), passphrase=b"second")
    assert again.read(0, 4) == b"kept"
    with pytest.raises(AuthenticationError):
        LuksImage(file_again(file), passphrase=b"passphrase")


def test_a_file_that_ends_before_the_payload(empty: bytes):
    cut = MemoryStore(empty[: 2068480 - 512])
    with pytest.raises(CorruptImageError, match=r"disk.*past the end|past the end"):
        open_image(cut)
    assert cut.closed


def test_a_file_that_ends_inside_a_sector(empty: bytes):
    image = open_image(MemoryStore(empty[: 2068480 + 700]))
    assert image.size == 1024
    image.write(512, b"\x11" * 512)
    assert image.read(512, 512) == b"\x11" * 512


def test_the_extra_is_named_where_it_is_missing(empty: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "vdisk.formats._luks.ciphers", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    monkeypatch.delattr("vdisk.formats._luks.ciphers", raising=False)
    with pytest.raises(UnsupportedFeatureError, match=r"pip install vdisk\[crypto\]"):
        open_image(MemoryStore(empty))
