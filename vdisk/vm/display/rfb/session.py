"""One client's conversation (RFC 6143, section 7) as a state machine: bytes in, events out.

::

    VERSION -> SECURITY -> CHALLENGE -> INIT -> NORMAL        ended: any bytes are an error
       |          (3.3: the server decides)
       +-- "RFB 003.008\\n" from both sides

The server feeds :meth:`RfbSession.receive_data`, takes events, and sends what
:meth:`RfbSession.data_to_send` gives.  Nothing is kept of what a client sends but the beginning
of a message that is not whole, and that is short: cut text is skipped as it comes.
"""

from __future__ import annotations

import enum
from collections import deque
from struct import unpack
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.display.rfb import wire
from vdisk.vm.display.rfb.pixels import NATIVE, PixelFormat
from vdisk.vm.display.rfb.wire import ClientMessage, RfbProtocolError, Security

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ENCODINGS = 1024
"""Of one SetEncodings: real clients have about 30."""
MOST_CUT_TEXT = 16 << 20
"""Bytes of one ClientCutText that are skipped: longer than any clipboard of text."""
_LARGEST_NAME = 256
_VERSION = b"RFB 003.008\n"


class Initialised(NamedTuple):
    """The client is in.  ``shared``: it leaves other clients alone."""

    shared: bool


class PixelFormatWanted(NamedTuple):
    """SetPixelFormat."""

    format: PixelFormat


class EncodingsWanted(NamedTuple):
    """SetEncodings, in the client's order of preference."""

    encodings: tuple[int, ...]


class UpdateRequest(NamedTuple):
    """FramebufferUpdateRequest."""

    incremental: bool
    rect: wire.Rect


class KeyEvent(NamedTuple):
    """A key; ``number`` (see :mod:`vdisk.vm.display.keys`) where the client sends it, else 0."""

    down: bool
    keysym: int
    number: int = 0


class PointerEvent(NamedTuple):
    """``buttons``: bit 0 left, 1 middle, 2 right, 3 and 4 wheel up and down."""

    buttons: int
    x: int
    y: int


class SizeWanted(NamedTuple):
    """SetDesktopSize."""

    width: int
    height: int


Event = (
    Initialised
    | PixelFormatWanted
    | EncodingsWanted
    | UpdateRequest
    | KeyEvent
    | PointerEvent
    | SizeWanted
)


class Phase(enum.Enum):
    """Where the conversation is."""

    VERSION = enum.auto()
    SECURITY = enum.auto()
    CHALLENGE = enum.auto()
    INIT = enum.auto()
    NORMAL = enum.auto()
    ENDED = enum.auto()


class RfbSession:
    """The server's end.

    ``check``: None where no password is needed, else whether the response to a ``challenge`` (16
    random bytes) is right.
    """

    def __init__(
        self, *, challenge: bytes = b"", check: Callable[[bytes, bytes], bool] | None = None
    ) -> None:
        self.phase = Phase.VERSION
        self._check = check
        self._challenge = challenge
        self._minor = 8
        self._buffer = bytearray()
        self._skip = 0
        self._events: deque[Event] = deque()
        self._output = bytearray(_VERSION)

    def data_to_send(self) -> bytes:
        """What is to be sent now."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def next_event(self) -> Event | None:
        """The next thing that the client has asked for."""
        return self._events.popleft() if self._events else None

    def receive_data(self, data: bytes) -> None:
        """Take bytes.  Raises :class:`RfbProtocolError`; then send what is left and close."""
        if self.phase is Phase.ENDED:
            raise RfbProtocolError("bytes after the end of the conversation")
        self._buffer += data
        try:
            while self._step():
                pass
        except RfbProtocolError:
            self.phase = Phase.ENDED
            raise

    def introduce(self, width: int, height: int, name: str) -> None:
        """Answer :class:`Initialised`: ServerInit."""
        encoded = name.encode("utf-8", "replace")[:_LARGEST_NAME]
        self._output += wire.SERVER_INIT.pack(width, height, NATIVE.pack(), len(encoded)) + encoded

    # -- handshake ---------------------------------------------------------------------------

    def _step(self) -> bool:
        """Consume one message; False if it is not there yet."""
        if self._skip:
            return self._skip_some()
        step = _STEPS.get(self.phase)
        return step(self) if step is not None else False

    def _take(self, length: int) -> bytes | None:
        """The next ``length`` bytes, None if they are not there yet."""
        if len(self._buffer) < length:
            return None
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _version(self) -> bool:
        data = self._take(wire.VERSION_LENGTH)
        if data is None:
            return False
        if data[:4] != b"RFB " or data[7:8] != b"." or data[11:] != b"\n":
            raise RfbProtocolError("not a VNC client")
        major, minor = data[4:7], data[8:11]
        if not (major.isdigit() and minor.isdigit()) or (major, minor) < (b"003", b"003"):
            raise RfbProtocolError("a version of RFB before 3.3")
        # Versions that were never published are treated as 3.3 (RFC 6143, section 7.1.1); what
        # comes after 3.8 (Apple's 3.889, RealVNC's 4 and 5) understands 3.8.
        self._minor = 8 if (major, minor) >= (b"003", b"008") else 7 if minor == b"007" else 3
        offered = Security.NONE if self._check is None else Security.VNC_AUTHENTICATION
        if self._minor == 3:
            self._output += offered.to_bytes(4, "big")
            self._begin_security(offered)
        else:
            self._output += bytes([1, offered])
            self.phase = Phase.SECURITY
        return True

    def _security(self) -> bool:
        data = self._take(1)
        if data is None:
            return False
        offered = Security.NONE if self._check is None else Security.VNC_AUTHENTICATION
        if data[0] != offered:
            self._refuse(f"security type {data[0]} was not offered")
        self._begin_security(offered)
        return True

    def _begin_security(self, chosen: Security) -> None:
        if chosen is Security.VNC_AUTHENTICATION:
            self._output += self._challenge
            self.phase = Phase.CHALLENGE
            return
        if self._minor == 8:
            self._output += bytes(4)
        self.phase = Phase.INIT

    def _response(self) -> bool:
        data = self._take(wire.CHALLENGE_LENGTH)
        if data is None:
            return False
        assert self._check is not None
        if not self._check(self._challenge, data):
            self._refuse("wrong password")
        self._output += bytes(4)
        self.phase = Phase.INIT
        return True

    def _refuse(self, reason: str) -> None:
        self._output += (1).to_bytes(4, "big")
        if self._minor == 8:
            text = reason.encode()
            self._output += len(text).to_bytes(4, "big") + text
        raise RfbProtocolError(reason)

    def _init(self) -> bool:
        data = self._take(1)
        if data is None:
            return False
        self.phase = Phase.NORMAL
        self._events.append(Initialised(bool(data[0])))
        return True

    # -- messages ----------------------------------------------------------------------------

    def _message(self) -> bool:
        if not self._buffer:
            return False
        read = _MESSAGES.get(self._buffer[0])
        if read is None:
            raise RfbProtocolError(f"unknown message {self._buffer[0]}")
        return read(self)

    def _skip_some(self) -> bool:
        count = min(self._skip, len(self._buffer))
        del self._buffer[:count]
        self._skip -= count
        return count > 0

    def _pixel_format(self) -> bool:
        data = self._take(wire.SET_PIXEL_FORMAT.size)
        if data is None:
            return False
        (packed,) = wire.SET_PIXEL_FORMAT.unpack(data)
        self._events.append(PixelFormatWanted(PixelFormat.parse(packed)))
        return True

    def _encodings(self) -> bool:
        header = wire.SET_ENCODINGS.size
        if len(self._buffer) < header:
            return False
        (count,) = wire.SET_ENCODINGS.unpack_from(self._buffer)
        if count > MOST_ENCODINGS:
            raise RfbProtocolError(f"{count} encodings")
        data = self._take(header + 4 * count)
        if data is None:
            return False
        self._events.append(EncodingsWanted(unpack(f">{count}i", data[header:])))
        return True

    def _update_request(self) -> bool:
        data = self._take(wire.UPDATE_REQUEST.size)
        if data is None:
            return False
        incremental, *rect = wire.UPDATE_REQUEST.unpack(data)
        self._events.append(UpdateRequest(bool(incremental), wire.Rect(*rect)))
        return True

    def _key(self) -> bool:
        data = self._take(wire.KEY_EVENT.size)
        if data is None:
            return False
        down, keysym = wire.KEY_EVENT.unpack(data)
        self._events.append(KeyEvent(bool(down), keysym))
        return True

    def _pointer(self) -> bool:
        data = self._take(wire.POINTER_EVENT.size)
        if data is None:
            return False
        self._events.append(PointerEvent(*wire.POINTER_EVENT.unpack(data)))
        return True

    def _cut_text(self) -> bool:
        data = self._take(wire.CUT_TEXT.size)
        if data is None:
            return False
        (length,) = wire.CUT_TEXT.unpack(data)
        if length > MOST_CUT_TEXT:
            raise RfbProtocolError(f"cut text of {length} bytes")
        self._skip = length
        return True

    def _desktop_size(self) -> bool:
        header = wire.SET_DESKTOP_SIZE.size
        if len(self._buffer) < header:
            return False
        width, height, screens = wire.SET_DESKTOP_SIZE.unpack_from(self._buffer)
        if self._take(header + screens * wire.SCREEN.size) is None:
            return False
        self._events.append(SizeWanted(width, height))
        return True

    def _qemu(self) -> bool:
        if len(self._buffer) < wire.QEMU_MESSAGE.size:
            return False
        (kind,) = wire.QEMU_MESSAGE.unpack_from(self._buffer)
        if kind != wire.QEMU_EXTENDED_KEY_EVENT:
            raise RfbProtocolError(f"unknown QEMU message {kind}")
        data = self._take(wire.QEMU_KEY_EVENT.size)
        if data is None:
            return False
        down, keysym, number = wire.QEMU_KEY_EVENT.unpack(data)
        self._events.append(KeyEvent(bool(down), keysym, number))
        return True


_STEPS: dict[Phase, Callable[[RfbSession], bool]] = {
    Phase.VERSION: RfbSession._version,
    Phase.SECURITY: RfbSession._security,
    Phase.CHALLENGE: RfbSession._response,
    Phase.INIT: RfbSession._init,
    Phase.NORMAL: RfbSession._message,
}
_MESSAGES: dict[int, Callable[[RfbSession], bool]] = {
    ClientMessage.SET_PIXEL_FORMAT: RfbSession._pixel_format,
    ClientMessage.SET_ENCODINGS: RfbSession._encodings,
    ClientMessage.FRAMEBUFFER_UPDATE_REQUEST: RfbSession._update_request,
    ClientMessage.KEY_EVENT: RfbSession._key,
    ClientMessage.POINTER_EVENT: RfbSession._pointer,
    ClientMessage.CLIENT_CUT_TEXT: RfbSession._cut_text,
    ClientMessage.SET_DESKTOP_SIZE: RfbSession._desktop_size,
    ClientMessage.QEMU: RfbSession._qemu,
}
