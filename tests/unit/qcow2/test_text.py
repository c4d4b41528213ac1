"""Names that are not UTF-8: kept as they are, or refused where no file could hold them."""

from __future__ import annotations

import pytest

from tests.tools import images
from vdisk.errors import InvalidRequestError
from vdisk.formats._qcow2.header import parse
from vdisk.formats._qcow2.measure import measure_bitmaps
from vdisk.formats._qcow2.text import decoded, encoded
from vdisk.stores.memory import MemoryStore


def test_any_bytes_are_kept() -> None:
    everything = bytes(range(256))
    assert encoded(decoded(everything)) == everything


def test_a_format_name_that_is_not_utf8_survives_a_rewrite() -> None:
    file = MemoryStore()
    images.create(file, 1 << 20, backing_file="base", backing_fmt="raw")
    head = file.read(0, 4096).replace(b"raw\0", b"\xffaw\0", 1)
    header = parse(head, path="image")
    assert parse(header.to_bytes(), path="image").backing_format == decoded(b"\xffaw")


@pytest.mark.parametrize("name", ["\ud800", "fine\udfff"])
def test_what_no_bytes_are_read_as_is_refused(name: str) -> None:
    file = MemoryStore()
    images.create(file, 1 << 20)
    with images.open_image(file) as image:
        with pytest.raises(InvalidRequestError, match="cannot be stored"):
            image.create_snapshot(name)
        with pytest.raises(InvalidRequestError, match="cannot be stored"):
            image.add_bitmap(name)
        with pytest.raises(InvalidRequestError, match="cannot be stored"):
            image.change_backing(name, None)
        assert image.header.backing_file is None
        assert not image.check().corruptions


def test_bitmaps_of_such_names_are_measured() -> None:
    assert measure_bitmaps([("\udcff", 65536)], 1 << 20, 65536) == measure_bitmaps(
        [("a", 65536)], 1 << 20, 65536
    )
