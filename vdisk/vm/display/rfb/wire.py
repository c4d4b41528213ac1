"""Numbers and layouts of RFB: RFC 6143, and what the community's rfbproto adds to it.

All numbers are big-endian.  A rectangle of an update is ``x, y, width, height, encoding`` and the
data of the encoding; a pseudo-encoding uses these fields for its own purposes.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import NamedTuple

from vdisk.errors import VdiskError


class RfbProtocolError(VdiskError):
    """The client broke the protocol, or was refused: the connection ends."""

    kind = "protocol"


class Security(enum.IntEnum):
    """Security types (section 7.1.2)."""

    INVALID = 0
    NONE = 1
    VNC_AUTHENTICATION = 2


class ClientMessage(enum.IntEnum):
    """What clients send (section 7.5)."""

    SET_PIXEL_FORMAT = 0
    SET_ENCODINGS = 2
    FRAMEBUFFER_UPDATE_REQUEST = 3
    KEY_EVENT = 4
    POINTER_EVENT = 5
    CLIENT_CUT_TEXT = 6
    SET_DESKTOP_SIZE = 251
    QEMU = 255


class Encoding(enum.IntEnum):
    """Encodings (section 7.7) and pseudo-encodings that this server knows."""

    RAW = 0
    HEXTILE = 5
    ZLIB = 6
    TIGHT = 7
    ZRLE = 16
    DESKTOP_SIZE = -223
    POINTER_MOTION_CHANGE = -257
    EXTENDED_KEY_EVENT = -258
    LED_STATE = -261
    DESKTOP_NAME = -307
    EXTENDED_DESKTOP_SIZE = -308


class Rect(NamedTuple):
    """Pixels [x, x + width) of rows [y, y + height)."""

    x: int
    y: int
    width: int
    height: int


VERSION_LENGTH = 12
CHALLENGE_LENGTH = 16
RELATIVE_ORIGIN = 0x7FFF
"""What clients that send relative motion (QEMU's pointer motion change) add to it."""

PIXEL_FORMAT = Struct(">BBBBHHHBBBxxx")
SERVER_INIT = Struct(">HH16sI")
SET_PIXEL_FORMAT = Struct(">xxxx16s")
SET_ENCODINGS = Struct(">xxH")
UPDATE_REQUEST = Struct(">xBHHHH")
KEY_EVENT = Struct(">xBxxI")
POINTER_EVENT = Struct(">xBHH")
CUT_TEXT = Struct(">xxxxI")
SET_DESKTOP_SIZE = Struct(">xxHHBx")
SCREEN = Struct(">IHHHHI")
QEMU_MESSAGE = Struct(">xB")
QEMU_KEY_EVENT = Struct(">xxHII")
QEMU_EXTENDED_KEY_EVENT = 0

UPDATE = Struct(">BxH")
RECTANGLE = Struct(">HHHHi")
COLOUR_MAP_ENTRIES = Struct(">BxHH")
FRAMEBUFFER_UPDATE = 0
SET_COLOUR_MAP_ENTRIES = 1


def rectangle(rect: Rect, encoding: int, data: bytes = b"") -> bytes:
    """One rectangle of an update."""
    return RECTANGLE.pack(*rect, encoding) + data


def update(rectangles: list[bytes]) -> bytes:
    """A FramebufferUpdate message."""
    return UPDATE.pack(FRAMEBUFFER_UPDATE, len(rectangles)) + b"".join(rectangles)
