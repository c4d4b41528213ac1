"""What a CD-ROM drive says: answers of packet commands (SPC-2, SBC-2, MMC-4), as bytes.

Everything here is a function of the medium: ``blocks``, its 2048-byte sectors, or 0.
"""

from __future__ import annotations

import struct
from typing import Final

BLOCK: Final = 2048
LEAD_OUT: Final = 0xAA
SECONDS_BEFORE: Final = 2 * 75  # the first sector is at 00:02:00

NO_SENSE, NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION = 0, 2, 3, 5, 6
ASC_LBA_OUT_OF_RANGE, ASC_INVALID_COMMAND, ASC_INVALID_FIELD = 0x21, 0x20, 0x24
ASC_MEDIUM_CHANGED, ASC_RESET, ASC_NO_MEDIUM, ASC_READ_ERROR = 0x28, 0x29, 0x3A, 0x11
ASC_REMOVAL_PREVENTED, ASC_SAVING_UNSUPPORTED = 0x53, 0x39

PROFILE_CD_ROM, PROFILE_DVD_ROM = 0x0008, 0x0010
CD_BLOCKS: Final = 80 * 60 * 75
"""Sectors of the longest CD; a larger medium is a DVD."""

_EVENT_CLASSES: Final = 0x10  # media events are the only ones
MEDIA_CLASS: Final = 4


def profile(blocks: int) -> int:
    """What kind of medium is in the drive; 0: none."""
    if not blocks:
        return 0
    return PROFILE_CD_ROM if blocks <= CD_BLOCKS else PROFILE_DVD_ROM


def inquiry(model: str, firmware: str) -> bytes:
    """Standard INQUIRY data: a removable CD-ROM, ATAPI."""
    vendor, _, product = model.partition(" ")
    data = struct.pack("BBBBBBBB", 0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0)
    texts = (vendor.ljust(8)[:8], product.ljust(16)[:16], firmware.ljust(4)[:4])
    return data + "".join(texts).encode("ascii")


def inquiry_page(page: int, serial: str) -> bytes | None:
    """A vital product data page: which there are (0), the serial number (80h)."""
    if page == 0x00:
        return bytes([0x05, 0, 0, 2, 0x00, 0x80])
    if page == 0x80:
        text = serial.encode("ascii", "replace")
        return bytes([0x05, 0x80, 0, len(text)]) + text
    return None


def sense(key: int, code: int, qualifier: int = 0) -> bytes:
    """Fixed-format sense data."""
    return bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0])


def capacity(blocks: int) -> bytes:
    """READ CAPACITY: the last sector, and the length of a sector."""
    return struct.pack(">II", min(max(blocks, 1) - 1, 0xFFFF_FFFF), BLOCK)


def msf(block: int) -> bytes:
    """An address as minutes, seconds, frames."""
    seconds, frame = divmod(block + SECONDS_BEFORE, 75)
    minute, second = divmod(seconds, 60)
    return bytes([0, min(minute, 255), second, frame])


def _address(block: int, *, as_msf: bool) -> bytes:
    return msf(block) if as_msf else struct.pack(">I", block)


def toc(blocks: int, form: int, first_track: int, *, as_msf: bool) -> bytes | None:
    """READ TOC/PMA/ATIP: one data track and the lead-out; None for a form there is not."""
    if form == 0:
        if first_track > 1 and first_track != LEAD_OUT:
            return None
        entries = b""
        if first_track <= 1:
            entries += bytes([0, 0x14, 1, 0]) + _address(0, as_msf=as_msf)
        entries += bytes([0, 0x16, LEAD_OUT, 0]) + _address(blocks, as_msf=as_msf)
        return struct.pack(">HBB", len(entries) + 2, 1, 1) + entries
    if form == 1:  # sessions: there is one
        return struct.pack(">HBB", 10, 1, 1) + bytes([0, 0x14, 1, 0]) + _address(0, as_msf=as_msf)
    return _raw_toc(blocks) if form == 2 else None


def _raw_toc(blocks: int) -> bytes:
    """The table as it is recorded: points A0, A1, A2 and the track, all in MSF."""
    entries = b"".join(
        bytes([1, 0x14, 0, point, 0, 0, 0]) + address
        for point, address in (
            (0xA0, bytes([0, 1, 0, 0])),
            (0xA1, bytes([0, 1, 0, 0])),
            (0xA2, msf(blocks)),
            (0x01, msf(0)),
        )
    )
    return struct.pack(">HBB", len(entries) + 2, 1, 1) + entries


def configuration(blocks: int, first: int, kind: int) -> bytes:
    """GET CONFIGURATION: features from ``first`` on, all or (1) the current or (2) one of them."""
    current = profile(blocks)
    profiles = b"".join(
        struct.pack(">HBB", number, int(number == current), 0)
        for number in (PROFILE_DVD_ROM, PROFILE_CD_ROM)
    )
    features = (
        (0x0000, 0x03, profiles),
        (0x0001, 0x0B, struct.pack(">IB3x", 2, 1)),  # core: ATAPI
        (0x0003, 0x03, bytes([0x29, 0, 0, 0])),  # removable: tray, eject, lock
        (0x0010, 0x00 | bool(blocks), struct.pack(">IHBx", BLOCK, 1, 0)),  # random readable
        (0x001E, 0x08 | (current == PROFILE_CD_ROM), bytes(4)),  # CD read
        (0x001F, 0x00 | (current == PROFILE_DVD_ROM), b""),  # DVD read
    )
    body = b""
    for number, flags, data in features:
        wanted = number == first if kind == 2 else number >= first
        if wanted and (kind != 1 or flags & 1):
            body += struct.pack(">HBB", number, flags, len(data)) + data
    return struct.pack(">IHH", len(body) + 4, 0, current) + body


def event_status(requested: int, event: int, *, present: bool, tray_open: bool) -> bytes:
    """GET EVENT STATUS NOTIFICATION for media: ``event`` 0 none, 1 eject asked for, 2 new, 3 gone.

    Without a class that is supported: a header that says so.
    """
    if not requested & _EVENT_CLASSES:
        return struct.pack(">HBB", 2, 0x80, _EVENT_CLASSES)
    status = int(tray_open) | present << 1
    return struct.pack(">HBB", 6, MEDIA_CLASS, _EVENT_CLASSES) + bytes([event, status, 0, 0])


def disc_information() -> bytes:
    """READ DISC INFORMATION: complete, one session, one track, not erasable."""
    data = bytearray(34)
    struct.pack_into(">H", data, 0, 32)
    data[2], data[3], data[4], data[5], data[6] = 0x0E, 1, 1, 1, 1
    data[7] = 0x20
    data[16:24] = b"\xff" * 8
    return bytes(data)


def mechanism_status(*, tray_open: bool) -> bytes:
    """MECHANISM STATUS: no changer."""
    return bytes([0, 0x10 if tray_open else 0, 0, 0, 0, 1, 0, 0])


def mode_pages(page: int, blocks: int, *, locked: bool, long: bool) -> bytes | None:
    """MODE SENSE: error recovery (01h), audio (0Eh), capabilities (2Ah), or all of them (3Fh)."""
    pages = {
        0x01: bytes([0x01, 6, 0, 5, 0, 0, 0, 0]),
        0x0E: bytes([0x0E, 14, 4, 0, 0, 0, 0, 0, 1, 0xFF, 2, 0xFF, 0, 0, 0, 0]),
        0x2A: bytes([0x2A, 20, 0x3B, 0, 0x70, 0x60, 0x29 | locked << 1, 0])
        + struct.pack(">HHHHBBBBBB", 706, 2, 512, 706, 0, 0, 0, 0, 0, 0),
    }
    if page == 0x3F:
        body = b"".join(pages.values())
    elif page in pages:
        body = pages[page]
    else:
        return None
    medium = 0x70 if not blocks else 0x01
    if long:
        return struct.pack(">HBBBBH", len(body) + 6, medium, 0, 0, 0, 0) + body
    return bytes([len(body) + 3, medium, 0, 0]) + body
