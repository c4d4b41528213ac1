"""Where servers and serial lines listen, as the command line has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError
from vdisk.options import OptionBag, parse_keyval

if TYPE_CHECKING:
    from vdisk.vm.display.serving import Address


def listening_address(text: str) -> Address:
    """``unix:PATH`` or ``HOST:PORT``; also with QEMU's words for a server that does not wait."""
    from vdisk.vm.display.serving import parse_address

    place, _, words = text.partition(",")
    options = OptionBag(parse_keyval(words) if words else {}, f"the address {place}")
    if not options.boolean("server", True) or options.boolean("wait"):
        raise InvalidRequestError(f"{text!r}: vdisk-vm listens, and waits for nobody")
    options.boolean("nodelay")
    options.finish()
    for kind in ("tcp:", "telnet:"):
        place = place.removeprefix(kind)
    return parse_address(place)
