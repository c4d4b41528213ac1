"""From what a machine boots, in the words of QEMU's ``-boot``::

cd                                  hard disks, then CD-ROMs, then whatever else there is
order=c,once=d                      CD-ROMs the first time, hard disks after a reset
menu=on,splash-time=10000           ten seconds in which a key brings a menu of the drives
order=d,strict=on                   CD-ROMs and nothing else
reboot-timeout=5000                 start again, 5 s after nothing could be booted
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.errors import InvalidRequestError
from vdisk.options import OptionBag, parse_keyval

NUMBERS = {"a": 1, "c": 2, "d": 3, "n": 4}
"""Diskette, hard disk, CD-ROM, network, and their numbers in CMOS memory."""
DEFAULT_ORDER = "cd"
DEFAULT_MENU_MS = 2500
"""As SeaBIOS."""
MOST_MS = 0xFFFF
"""What QEMU allows: firmware reads 16 bits."""


@dataclass(frozen=True, slots=True)
class BootChoice:
    """``order``, ``once``: kinds of drives by letters.  ``menu_ms``: how long a key brings the
    menu, where there is one.  ``retry_ms``: None: start again when a key is pressed only."""

    order: str = DEFAULT_ORDER
    once: str = ""
    menu: bool = False
    menu_ms: int = DEFAULT_MENU_MS
    retry_ms: int | None = None
    strict: bool = False

    @classmethod
    def parse(cls, text: str) -> BootChoice:
        """Raises :class:`InvalidRequestError` for what is no boot order or no such option."""
        if not text:
            raise InvalidRequestError("an empty boot order")
        bag = OptionBag(parse_keyval(text, implied_key="order"), f"boot {text!r}")
        choice = cls(
            order=_letters(bag.string("order") or DEFAULT_ORDER),
            once=_letters(bag.string("once") or ""),
            menu=bag.boolean("menu"),
            menu_ms=_milliseconds("splash-time", bag.string("splash-time"), DEFAULT_MENU_MS),
            retry_ms=_retry(bag.string("reboot-timeout")),
            strict=bag.boolean("strict"),
        )
        bag.finish()
        return choice

    def letters(self, *, first: bool) -> str:
        """The kinds to boot, at power-on or later."""
        return self.once if first and self.once else self.order


def _letters(text: str) -> str:
    if set(text) - NUMBERS.keys() or len(set(text)) < len(text):
        letters = "".join(NUMBERS)
        raise InvalidRequestError(f"boot order {text!r}: letters of {letters}, each once")
    return text


def _milliseconds(name: str, text: str | None, otherwise: int) -> int:
    if text is None:
        return otherwise
    if not text.isdecimal() or int(text) > MOST_MS:
        raise InvalidRequestError(f"{name}={text}: milliseconds, up to {MOST_MS}")
    return int(text)


def _retry(text: str | None) -> int | None:
    """QEMU's -1 means never."""
    return None if text in {None, "-1"} else _milliseconds("reboot-timeout", text, 0)
