"""Salvage: what cannot be read is zero, and only that."""

from __future__ import annotations

from vdisk.block import Extent, Kind
from vdisk.errors import DeviceError
from vdisk.jobs.salvage import Salvager
from vdisk.stores.memory import MemoryStore


class BadSectors(MemoryStore):
    """Fails every read that touches one of the sectors ``bad``."""

    bad = frozenset({3, 4, 9})

    def _read_into(self, offset: int, view: memoryview) -> None:
        if any(offset < (n + 1) * 512 and n * 512 < offset + len(view) for n in self.bad):
            raise DeviceError("cannot read: Input/output error", path=self.name, offset=offset)
        super()._read_into(offset, view)


def test_loses_the_bad_sectors_and_says_which() -> None:
    content = bytes(range(1, 17)) * 32 * 12
    source = BadSectors(content)
    reports: list[str] = []
    buffer = bytearray(b"?" * len(content))
    extents = [Extent(1000, len(content), Kind.DATA, source, 0)]
    Salvager(reports.append)(extents, 1000, memoryview(buffer))
    for sector in range(12):
        part = buffer[sector * 512 : (sector + 1) * 512]
        expected = bytes(512) if sector in source.bad else content[:512]
        assert part == expected, sector
    assert [int(report.split()[4].rstrip(":")) for report in reports] == [
        1000 + 512 * sector for sector in sorted(source.bad)
    ]


def test_says_nothing_when_all_can_be_read() -> None:
    source = MemoryStore(b"ab" * 256)
    buffer = bytearray(1024)
    extents = [Extent(0, 512, Kind.DATA, source, 0), Extent(512, 512, Kind.HOLE)]
    Salvager(lambda message: (_ for _ in ()).throw(AssertionError(message)))(
        extents, 0, memoryview(buffer)
    )
    assert buffer == b"ab" * 256 + bytes(512)
