"""The LUKS1 header: round trips, its rules, and that any bytes give a header or an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import CorruptImageError, FormatError, UnsupportedFeatureError, VdiskError
from vdisk.formats._luks import header as phdr
from vdisk.formats._luks.header import Header, KeySlot, parse


def make_header(key_bytes: int = 64, active: tuple[int, ...] = (0,)) -> Header:
    spacing = phdr.material_spacing(key_bytes)
    return Header(
        cipher_name="aes",
        cipher_mode="xts-plain64",
        hash_spec="sha256",
        payload_offset=phdr.default_payload_offset(key_bytes),
        key_bytes=key_bytes,
        mk_digest=bytes(range(20)),
        mk_digest_salt=bytes(range(32)),
        mk_digest_iterations=1000,
        uuid="e2329cc4-03cc-4f80-bca0-6d72b28a7a10",
        slots=tuple(
            KeySlot(n in active, 5000 + n, bytes([n]) * 32, 4096 + n * spacing) for n in range(8)
        ),
    )


def test_layout_is_that_of_cryptsetup_and_qemu():
    assert phdr.PHDR.sizeof() == phdr.HEADER_SIZE
    assert phdr.SLOT.sizeof() == phdr.SLOT_SIZE
    assert phdr.default_payload_offset(64) == 2068480
    assert make_header().slots[1].offset == 262144
    data = make_header().to_bytes()
    assert data[:8] == b"LUKS\xba\xbe\0\x01"
    assert data[104:108] == (2068480 // 512).to_bytes(4, "big")
    assert data[208:216] == bytes.fromhex("00ac71f3 00001388")
    assert data[256:260] == bytes.fromhex("0000dead")


keys = st.sampled_from([16, 24, 32, 48, 64])
actives = st.sets(st.integers(0, 7)).map(lambda found: tuple(sorted(found)))


@given(keys, actives)
def test_what_is_written_is_read_again(key_bytes: int, active: tuple[int, ...]):
    header = make_header(key_bytes, active)
    assert parse(header.to_bytes()) == header
    assert header.active_slots == list(active)


def test_a_slot_written_alone_is_the_slot_of_the_whole_header():
    header = make_header(active=(0, 3))
    data = header.to_bytes()
    for number, slot in enumerate(header.slots):
        position = phdr.slot_position(number)
        assert data[position : position + phdr.SLOT_SIZE] == slot.to_bytes()


@given(st.binary(max_size=700))
def test_any_bytes_are_a_header_or_an_error(data: bytes):
    with pytest.raises((FormatError, CorruptImageError, UnsupportedFeatureError)):
        parse(data)


@given(st.lists(st.tuples(st.integers(0, 591), st.binary(min_size=1, max_size=4)), max_size=4))
def test_a_damaged_header_is_a_sane_header_or_an_error(damage: list[tuple[int, bytes]]):
    data = bytearray(make_header().to_bytes())
    for position, patch in damage:
        data[position : position + len(patch)] = patch
    try:
        header = parse(bytes(data))
    except VdiskError:
        return
    assert 0 < header.key_bytes <= phdr.MAX_KEY_BYTES
    for slot in header.slots:
        assert slot.offset >= phdr.HEADER_SIZE
        assert slot.offset + header.key_bytes * slot.stripes <= header.payload_offset


def changed(**fields: object) -> bytes:
    return make_header()._replace(**fields).to_bytes()


def changed_slot(number: int, **fields: object) -> bytes:
    header = make_header()
    return header.with_slot(number, header.slots[number]._replace(**fields)).to_bytes()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (changed(key_bytes=0), "key-bytes is 0"),
        (changed(key_bytes=65), "key-bytes is 65"),
        (changed(mk_digest_iterations=0), "mk-digest-iter is 0"),
        (changed(payload_offset=2068480 - 4096), "overlaps the payload"),
        (changed(payload_offset=0), "overlaps the payload"),
        (changed_slot(2, stripes=0), "slot 2 has 0 stripes"),
        (changed_slot(2, stripes=0xFFFF_FFFF), "slot 2 has 4294967295 stripes"),
        (changed_slot(0, iterations=0), "slot 0 has 0 iterations"),
        (changed_slot(1, offset=512), "the header itself and key slot 1 overlap"),
        (changed_slot(1, offset=4096), "overlap at 0x1000"),
        (changed_slot(3, offset=0xFFFF_FFFF * 512), "key slot 3 overlaps the payload"),
    ],
)
def test_rules(data: bytes, rule: str):
    with pytest.raises(CorruptImageError, match=rule):
        parse(data)


def test_slot_state_and_text_are_checked():
    data = bytearray(make_header().to_bytes())
    data[208:212] = bytes(4)
    with pytest.raises(CorruptImageError, match="slot 0 is neither enabled nor disabled"):
        parse(bytes(data))
    data = bytearray(make_header().to_bytes())
    data[8] = 0xFF
    with pytest.raises(CorruptImageError, match="cipher-name is not ASCII"):
        parse(bytes(data))


def test_other_versions_and_cut_headers():
    data = make_header().to_bytes()
    with pytest.raises(UnsupportedFeatureError, match="version 2"):
        parse(data[:7] + b"\x02" + data[8:])
    with pytest.raises(CorruptImageError, match="cut short: 591"):
        parse(data[:591])
    with pytest.raises(FormatError):
        parse(b"QFI\xfb" + data)
