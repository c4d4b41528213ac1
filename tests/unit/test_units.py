"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import InvalidRequestError
from vdisk.units import GiB, KiB, MiB, TiB, format_size, parse_size, round_down, round_up


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        (" 512 ", 512),
        ("512b", 512),
        ("1024.0", 1024),
        ("1024.00b", 1024),
        ("64k", 64 * KiB),
        ("64K", 64 * KiB),
        ("1.5M", 3 * MiB // 2),
        (".5G", GiB // 2),
        ("0x200", 512),
        ("0X1fk", 31 * KiB),
        ("2t", 2 * TiB),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("9223372036854775807", (1 << 63) - 1),
        ("0.1k", 102),  # fractions of a byte are cut
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "-1",
        "1.5",
        "1.5b",
        "1kk",
        "1 k",
        "1e3",
        "0x",
        "9223372036854775808",
        "8E",
        "\u0663",
        "1_0",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="cluster size"):
        parse_size(text, what="cluster size")


@given(st.integers(0, (1 << 63) - 1))
def test_every_number_of_bytes_can_be_given_plainly_and_in_hexadecimal(size: int) -> None:
    assert parse_size(str(size)) == parse_size(hex(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (64 * KiB, "64 KiB"),
        (3 * GiB // 2, "1.5 GiB"),
        (1023 * MiB, "0.999 GiB"),
        (8 << 60, "8 EiB"),
    ],
)
def test_sizes_are_shown_with_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 70), st.integers(1, 1 << 40))
def test_rounding_gives_the_nearest_multiple_on_either_side(value: int, unit: int) -> None:
    below, above = round_down(value, unit), round_up(value, unit)
    assert below % unit == above % unit == 0
    assert value - unit < below <= value <= above < value + unit
