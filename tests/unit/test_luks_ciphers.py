"""Sector ciphers against published vectors and against one library call for each sector."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.formats._luks import ciphers
from vdisk.formats._luks.specification import CipherSpec

SECTOR = 512
COUNTING = bytes(range(256)) * 2

E_DIGITS = "2718281828459045235360287471352662497757247093699959574966967627"
PI_DIGITS = "3141592653589793238462643383279502884197169399375105820974944592"

IEEE_1619 = {
    # both keys, number of the data unit, how the ciphertext begins and ends
    "vector 4": (
        "27182818284590452353602874713526" + "31415926535897932384626433832795",
        0,
        "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
        "735779a418f20a282df920147beabe421ee5319d0568",
    ),
    "vector 10": (
        E_DIGITS + PI_DIGITS,
        0xFF,
        "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
        "4c4f36ffda9fcea70b9c6e693e148c151",
    ),
}


def make(spec: str, key: bytes) -> ciphers.SectorCipher:
    name, _, mode = spec.partition("-")
    return CipherSpec.from_header(name, mode, len(key)).cipher(key)


@pytest.mark.parametrize("vector", IEEE_1619)
def test_xts_vectors_of_ieee_1619(vector: str):
    key, unit, first, last = IEEE_1619[vector]
    cipher = make("aes-xts-plain64", bytes.fromhex(key))
    encrypted = cipher.encrypt(unit, memoryview(COUNTING))
    assert encrypted.hex().startswith(first)
    assert encrypted.hex().endswith(last)
    cipher.decrypt(unit, memoryview(encrypted))
    assert encrypted == COUNTING


def reference(spec: str, key: bytes, sector: int, data: bytes) -> bytes:
    """The sectors encrypted one by one, by the library's own modes."""
    name, mode, ivgen = spec.split("-")
    algorithm = {"aes": algorithms.AES, "cast5": CAST5}[name]
    iv_size = algorithm.block_size // 8
    result = b""
    for start in range(0, len(data), SECTOR):
        number = sector + start // SECTOR
        iv = (number % 2**32 if ivgen == "plain" else number).to_bytes(iv_size, "little")
        if ivgen.startswith("essiv"):
            hashed = hashlib.new(ivgen.partition(":")[2], key).digest()
            iv = Cipher(algorithm(hashed), modes.ECB()).encryptor().update(iv)
        kind = {"xts": modes.XTS, "cbc": modes.CBC, "ctr": modes.CTR}[mode](iv)
        encryptor = Cipher(algorithm(key), kind).encryptor()
        result += encryptor.update(data[start : start + SECTOR])
    return result


@pytest.mark.parametrize(
    ("spec", "key_bytes"),
    [
        ("aes-xts-plain64", 32),
        ("aes-xts-plain64", 64),
        ("aes-xts-plain", 64),
        ("aes-xts-essiv:sha256", 64),
        ("aes-cbc-plain64", 16),
        ("aes-cbc-plain", 32),
        ("aes-cbc-essiv:sha256", 24),
        ("aes-cbc-essiv:md5", 32),
        ("aes-ctr-plain64", 32),
        ("aes-ctr-essiv:sha256", 16),
        ("cast5-cbc-plain64", 16),
    ],
)
@given(data=st.data())
def test_a_run_is_its_sectors_one_by_one(spec: str, key_bytes: int, data: st.DataObject):
    key = hashlib.shake_128(data.draw(st.binary(max_size=8))).digest(key_bytes)
    sector = data.draw(st.integers(0, 2**34) | st.integers(2**32 - 3, 2**32 + 3))
    count = data.draw(st.integers(1, 5))
    plain = hashlib.shake_128(key).digest(count * SECTOR)
    cipher = make(spec, key)
    encrypted = cipher.encrypt(sector, memoryview(plain))
    assert encrypted == reference(spec, key, sector, plain)
    cipher.decrypt(sector, memoryview(encrypted))
    assert encrypted == plain


def test_ctr_carries_into_the_upper_half_of_the_counter():
    """ESSIV IVs are random; look for one whose lower half is about to overflow."""
    key = bytes(16)
    cipher = make("aes-ctr-essiv:sha256", key)
    cipher._ivs.vectors = lambda _sector, count: _vectors(b"\0" * 7 + b"\xff" * 9, count)
    encrypted = cipher.encrypt(0, memoryview(bytes(SECTOR)))
    counter = modes.CTR(b"\0" * 7 + b"\xff" * 9)
    expected = Cipher(algorithms.AES(key), counter).encryptor().update(bytes(SECTOR))
    assert encrypted == expected


def _vectors(iv: bytes, count: int) -> object:
    import numpy

    return numpy.frombuffer(iv * count, "<u8").reshape(count, 2)


@pytest.mark.parametrize("spec", ["aes-xts-plain64", "aes-cbc-plain64", "aes-ctr-plain", "aes-ecb"])
def test_long_runs_are_cut_without_a_seam(spec: str):
    cipher = make(spec, bytes(range(32)))
    length = 2 * ciphers.RUN + 3 * SECTOR
    plain = hashlib.shake_128(b"seam").digest(length)
    whole = cipher.encrypt(9, memoryview(plain))
    for start in (0, ciphers.RUN - SECTOR, ciphers.RUN, 2 * ciphers.RUN):
        part = plain[start : start + SECTOR]
        assert whole[start : start + SECTOR] == cipher.encrypt(
            9 + start // SECTOR, memoryview(part)
        )
    cipher.decrypt(9, memoryview(whole))
    assert whole == plain


def test_unaligned_memory():
    cipher = make("aes-xts-plain64", bytes(range(64)))
    plain = hashlib.shake_128(b"odd").digest(4 * SECTOR)
    moved = bytearray(b"x" + plain)
    expected = cipher.encrypt(3, memoryview(plain))
    assert cipher.encrypt(3, memoryview(moved)[1:]) == expected
    moved[1:] = expected
    cipher.decrypt(3, memoryview(moved)[1:])
    assert moved == b"x" + plain


def test_one_cipher_serves_many_threads():
    cipher = make("aes-xts-plain64", bytes(range(64)))
    plain = hashlib.shake_128(b"threads").digest(64 * SECTOR)
    expected = [bytes(cipher.encrypt(n, memoryview(plain))) for n in range(32)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: bytes(cipher.encrypt(n, memoryview(plain))), range(32)))
    assert found == expected


@pytest.mark.parametrize(
    ("spec", "key_bytes", "named"),
    [
        ("serpent-xts-plain64", 64, "serpent-256"),
        ("twofish-cbc-essiv:sha256", 16, "twofish-128"),
        ("aes-xts-plain64", 40, "aes-160"),
        ("cast5-xts-plain64", 32, "'xts' of cast5"),
        ("aes-lrw-benbi", 32, "'lrw'"),
        ("aes-cbc-benbi", 32, "'benbi'"),
        ("aes-cbc", 32, "''"),
        ("aes-", 32, "''"),
        ("aes-cbc-essiv:sha512", 32, "essiv:sha512"),
        ("aes-cbc-essiv:whirlpool", 32, "'whirlpool'"),
        ("aes-cbc-essiv", 32, "hash ''"),
        ("cast5-cbc-essiv:md5", 16, "essiv:md5"),
    ],
)
def test_what_cannot_be_done_is_named(spec: str, key_bytes: int, named: str):
    with pytest.raises(UnsupportedFeatureError, match=named):
        make(spec, bytes(key_bytes))


def test_specifications_by_options_and_by_header_agree():
    spec = CipherSpec.from_options("aes-256", "cbc", "essiv", "")
    assert (spec.name, spec.mode_string, spec.key_bytes) == ("aes", "cbc-essiv:sha256", 32)
    assert CipherSpec.from_header("aes", "cbc-essiv:sha256", 32) == spec
    spec = CipherSpec.from_options("aes-128", "xts", "plain64", "")
    assert (spec.mode_string, spec.key_bytes, spec.algorithm) == ("xts-plain64", 32, "aes-128")
    with pytest.raises(InvalidRequestError, match="aes-256"):
        CipherSpec.from_options("aes", "xts", "plain64", "")
