"""Pixel formats: each pixel converted is what the formula of the RFC gives."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.display.rfb.pixels import COLOUR_MAPPED, NATIVE, PixelFormat, colour_map
from vdisk.vm.display.rfb.wire import RfbProtocolError

RGB565 = PixelFormat(16, 16, False, True, (31, 63, 31), (11, 5, 0))
BGR233 = PixelFormat(8, 8, False, True, (7, 7, 3), (0, 3, 6))
FORMATS = [
    NATIVE,
    RGB565,
    BGR233,
    COLOUR_MAPPED,
    PixelFormat(16, 15, True, True, (31, 31, 31), (10, 5, 0)),
    PixelFormat(32, 24, True, True, (255, 255, 255), (0, 8, 16)),
    PixelFormat(32, 24, False, True, (255, 255, 255), (24, 16, 8)),
    PixelFormat(32, 24, True, True, (255, 255, 255), (24, 16, 8)),
    PixelFormat(32, 30, False, True, (1023, 1023, 1023), (20, 10, 0)),
    PixelFormat(32, 3, False, True, (1, 1, 1), (0, 1, 2)),
]


def expected(wanted: PixelFormat, red: int, green: int, blue: int) -> int:
    return sum(
        (value * most + 127) // 255 << shift
        for value, most, shift in zip((red, green, blue), wanted.maxima, wanted.shifts, strict=True)
    )


@pytest.mark.parametrize("wanted", FORMATS)
@given(pixels=st.lists(st.binary(min_size=4, max_size=4), max_size=9))
def test_conversion(wanted: PixelFormat, pixels: list[bytes]) -> None:
    order = "big" if wanted.big_endian else "little"
    values = [expected(wanted, red, green, blue) for blue, green, red, _ in pixels]
    ours = b"".join(pixel[:3] + b"\0" for pixel in pixels)
    assert wanted.convert(ours) == b"".join(value.to_bytes(wanted.size, order) for value in values)


@pytest.mark.parametrize("wanted", [one for one in FORMATS if one.true_colour])
def test_it_survives_the_wire(wanted: PixelFormat) -> None:
    assert PixelFormat.parse(wanted.pack()) == wanted


@pytest.mark.parametrize(
    ("wanted", "data"),
    [
        (NATIVE, b"\x01\x02\x03"),
        (PixelFormat(32, 24, True, True, (255, 255, 255), (16, 8, 0)), b"\x03\x02\x01"),
        (PixelFormat(32, 24, False, True, (255, 255, 255), (24, 16, 8)), b"\x01\x02\x03"),
        (PixelFormat(32, 24, True, True, (255, 255, 255), (24, 16, 8)), b"\x03\x02\x01"),
        (PixelFormat(32, 32, False, True, (255, 255, 255), (16, 8, 0)), b"\x01\x02\x03\x00"),
    ],
)
def test_compact_pixels_leave_out_the_unused_byte(wanted: PixelFormat, data: bytes) -> None:
    assert wanted.convert_compact(b"\x01\x02\x03\x00") == data
    assert wanted.compact_size == len(data)


@pytest.mark.parametrize(
    "fields",
    [
        (24, 24, 0, 1, 255, 255, 255, 16, 8, 0),
        (0, 0, 0, 1, 255, 255, 255, 16, 8, 0),
        (32, 24, 0, 1, 254, 255, 255, 16, 8, 0),
        (32, 24, 0, 1, 0, 255, 255, 16, 8, 0),
        (32, 24, 0, 1, 255, 255, 255, 200, 8, 0),
        (32, 24, 0, 1, 255, 255, 255, 16, 8, 7),
        (16, 16, 0, 1, 255, 255, 255, 16, 8, 0),
        (32, 0, 0, 1, 255, 255, 255, 16, 8, 0),
        (8, 9, 0, 1, 7, 7, 3, 0, 3, 6),
        (16, 16, 0, 0, 0, 0, 0, 0, 0, 0),
    ],
)
def test_formats_that_mean_nothing(fields: tuple[int, ...]) -> None:
    with pytest.raises(RfbProtocolError):
        PixelFormat.parse(pack(">BBBBHHHBBBxxx", *fields))


def test_the_colour_map() -> None:
    assert PixelFormat.parse(pack(">BBBBHHHBBBxxx", 8, 8, 0, 0, 0, 0, 0, 0, 0, 0)) == COLOUR_MAPPED
    data = colour_map()
    assert len(data) == 6 + 256 * 6
    assert data[-6:] == b"\xff" * 6
    assert data[6 + 7 * 6 : 6 + 8 * 6] == b"\xff\xff\0\0\0\0"
