"""Pictures as files, decoded by Pillow where it is there and by hand."""

from __future__ import annotations

import zlib
from struct import unpack
from typing import TYPE_CHECKING

import pytest

from tests.tools.fake_machine import pattern
from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.vm.display.base import Frame
from vdisk.vm.display.image import encode_png, encode_ppm, format_of, save_picture, to_rgb

if TYPE_CHECKING:
    from pathlib import Path

RED_GREEN = Frame(2, 1, b"\x01\x02\xff\x77\x00\xfe\x03\x88")


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        length, kind = unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        (crc,) = unpack(">I", data[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    return found


def test_colours_are_put_in_order() -> None:
    assert to_rgb(RED_GREEN.pixels) == b"\xff\x02\x01\x03\xfe\x00"


def test_a_ppm_is_a_header_and_the_colours() -> None:
    assert encode_ppm(RED_GREEN) == b"P6\n2 1\n255\n\xff\x02\x01\x03\xfe\x00"


def test_a_png_holds_the_picture() -> None:
    frame = pattern(33, 17)
    (kind, header), (_, data), (last, _) = chunks(encode_png(frame))
    assert (kind, last) == (b"IHDR", b"IEND")
    assert unpack(">IIBBBBB", header) == (33, 17, 8, 2, 0, 0, 0)
    raw = zlib.decompress(data)
    rows = [raw[at : at + 100] for at in range(0, len(raw), 100)]
    assert {row[0] for row in rows} == {0}
    assert b"".join(row[1:] for row in rows) == to_rgb(frame.pixels)


def test_the_name_says_which_format(tmp_path: Path) -> None:
    assert [format_of(name) for name in ("a.PNG", "a.ppm", "a")] == ["png", "ppm", "ppm"]
    save_picture(RED_GREEN, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes() == encode_png(RED_GREEN)
    save_picture(RED_GREEN, str(tmp_path / "a.png"), "ppm")
    assert (tmp_path / "a.png").read_bytes() == encode_ppm(RED_GREEN)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        save_picture(RED_GREEN, str(tmp_path / "no" / "a.png"))
    with pytest.raises(InvalidRequestError):
        save_picture(RED_GREEN, str(tmp_path / "a"), "gif")
