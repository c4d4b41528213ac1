"""What a display needs of a machine: a picture to show, and somewhere to put keys.

The video card is the :class:`Screen`, the keyboard and mouse controller the :class:`InputSink`;
terminal, VNC server and web page know nothing else.  All methods may be called from any thread:
implementations take ``bus.lock`` themselves.

Pixels are 32 bits, little-endian ``0x00RRGGBB``, as in the linear framebuffer of VBE's modes of
32 bits a pixel::

    byte    0     1      2    3
          +------+-------+-----+--------+
          | blue | green | red | unused |      the first pixel is that of the upper left corner
          +------+-------+-----+--------+
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

BYTES_PER_PIXEL = 4

VGA_PALETTE = (
    *(0x000000, 0x0000AA, 0x00AA00, 0x00AAAA, 0xAA0000, 0xAA00AA, 0xAA5500, 0xAAAAAA),
    *(0x555555, 0x5555FF, 0x55FF55, 0x55FFFF, 0xFF5555, 0xFF55FF, 0xFFFF55, 0xFFFFFF),
)
"""The 16 colours (0xRRGGBB) of a VGA after reset."""


class Frame(NamedTuple):
    """A picture of ``width`` x ``height`` pixels (see the module), rows without gaps.

    ``pixels`` belongs to the receiver: nobody changes it any more.
    """

    width: int
    height: int
    pixels: bytes


class Cursor(NamedTuple):
    """The text cursor: a cell, and the scan lines [start, end] of a character that it covers."""

    column: int
    row: int
    start: int = 14
    end: int = 15


class TextFrame(NamedTuple):
    """The screen of a text mode.

    ``cells``: for each cell, row by row, its character (of code page 437) and its attribute: bits
    0-3 foreground, 4-6 background, 7 blinking or, without ``blinking``, bright background.
    ``cursor``: None where it is off or outside.  ``palette``: 16 colours, 0xRRGGBB.
    """

    columns: int
    rows: int
    cells: bytes
    cursor: Cursor | None = None
    palette: Sequence[int] = VGA_PALETTE
    blinking: bool = True


class Screen(Protocol):
    """What a video card shows."""

    def generation(self) -> int:
        """A number that is another one whenever the picture may have changed; cheap to ask."""

    def frame(self) -> Frame:
        """The picture now, as :meth:`generation` counted it before the call or newer.

        A text mode is drawn with its font; a blanked screen is black.
        """

    def text(self) -> TextFrame | None:
        """The characters on the screen, or None in a graphics mode."""


class InputSink(Protocol):
    """The keyboard and the mouse.

    Keys have QEMU's names (``QKeyCode``; the table is in :mod:`vdisk.vm.display.keys`).
    """

    def key(self, qcode: str, down: bool) -> None:
        """Press or release a key; pressing one that is down repeats it."""

    def ready(self) -> bool:
        """Whether the guest has taken enough of the keys before for another one to be kept."""

    def move_pointer(self, dx: int, dy: int, wheel: int = 0) -> None:
        """Move by so many pixels, right and down; ``wheel`` clicks towards the user."""

    def set_buttons(self, buttons: int) -> None:
        """Which buttons are down: bit 0 left, 1 right, 2 middle (the PS/2 protocol's order)."""

    def leds(self) -> int:
        """The keyboard's lights: bit 0 scroll lock, 1 num lock, 2 caps lock."""
