"""Fault rules as text: QEMU's ``blkdebug`` options and its configuration files.

::

    blkdebug:CONFIG:IMAGE            driver=blkdebug,image.filename=IMAGE,config=CONFIG
    (CONFIG may be empty)            inject-error.0.event=l2_update,inject-error.0.errno=28

A configuration file has a section for each rule::

    # the second write of an L2 table finds the disk full
    [set-state]
    event = "l2_update"
    new_state = "2"

    [inject-error]
    event = "l2_update"
    state = "2"
    errno = "28"

What the rules mean: :mod:`vdisk.filters.faults`.  Beside them stand the limits of a device
(``align``, ``max-transfer``…): :mod:`vdisk.filters.limits`.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any, Final

from vdisk.block import close_all
from vdisk.errors import InvalidRequestError, from_os_error
from vdisk.filters.faults import (
    EVENTS,
    SECTOR,
    USUAL,
    Corrupt,
    Delay,
    Effect,
    Faults,
    InjectError,
    IoType,
    Rule,
    SetState,
    Where,
)
from vdisk.filters.limits import Limited, Limits
from vdisk.options import OptionBag
from vdisk.stores.null import seconds_from_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vdisk.block import BlockDevice

MAX_CONFIG: Final = 1 << 20
"""Bytes of a configuration file: thousands of rules."""

MAX_STATE: Final = 0xFFFF_FFFF

_SECTION: Final = re.compile(r'\[([\w-]+)(?: "[^"]*")?\]')
_SETTING: Final = re.compile(r'([\w-]+) *= *"([^"]*)"')


def parse_rules(options: Mapping[str, Any], owner: str = "driver 'blkdebug'") -> list[Rule]:
    """The rules in options such as ``{"inject-error": [{"event": …}]}``.

    A kind's rules are a list, or numbered as dotted keys make them: ``{"0": …, "1": …}``; one
    alone needs no number.
    """
    rules: list[Rule] = []
    for kind, given in options.items():
        if kind not in _KINDS:
            raise InvalidRequestError(f"{owner} has no option {kind!r}")
        for number, one in _numbered(given, f"{owner}: option {kind!r}"):
            bag = OptionBag(one, f"{owner}: {kind}.{number}")
            rules.append(_KINDS[kind](bag))
            bag.finish()
    return rules


def _numbered(given: Any, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(given, dict) and "event" in given:
        given = [given]
    if isinstance(given, dict):
        if sorted(given) != sorted(map(str, range(len(given)))):
            raise InvalidRequestError(f"{what}: rules are numbered from 0 on")
        given = [given[str(number)] for number in range(len(given))]
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise InvalidRequestError(f"{what} is a list of rules")
    yield from enumerate(given)


def read_config(path: str) -> dict[str, Any]:
    """The options that a configuration file holds."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_CONFIG + 1)
    except (OSError, ValueError) as error:
        found = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
        raise from_os_error(found, path=path, operation="read the rules") from error
    if len(text) > MAX_CONFIG:
        raise InvalidRequestError(f"rules of more than {MAX_CONFIG} bytes", path=path)
    return parse_config(text, path)


def parse_config(text: str, path: str) -> dict[str, Any]:
    """The options in the ``text`` of a configuration file called ``path``."""
    options: dict[str, list[dict[str, str]]] = {}
    section: dict[str, str] | None = None
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if found := _SECTION.fullmatch(line):
            section = {}
            options.setdefault(found[1], []).append(section)
        elif (found := _SETTING.fullmatch(line)) and section is not None:
            section[found[1]] = found[2]
        else:
            raise InvalidRequestError(
                f'line {number} is neither [section] nor key = "value": {line!r}', path=path
            )
    return dict(options)


# -- one rule --------------------------------------------------------------------------------------


def _set_state(bag: OptionBag) -> SetState:
    return SetState(_event(bag), _number(bag, "state", 0), _number(bag, "new_state", 1))


def _inject_error(bag: OptionBag) -> InjectError:
    bag.boolean("immediately")  # when QEMU's coroutine sees the error; here there is no other
    return InjectError(
        _event(bag),
        _number(bag, "state", 0),
        _where(bag),
        _errno(bag),
        Effect(bag.choice("effect", tuple(effect.value for effect in Effect), "none")),
    )


def _delay(bag: OptionBag) -> Delay:
    seconds = seconds_from_ns(bag, "latency-ns")
    return Delay(seconds, _event(bag), _number(bag, "state", 0), _where(bag))


def _corrupt(bag: OptionBag) -> Corrupt:
    return Corrupt(_event(bag), _number(bag, "state", 0), _where(bag))


_KINDS: Final[Mapping[str, Callable[[OptionBag], Rule]]] = {
    "set-state": _set_state,
    "inject-error": _inject_error,
    "delay": _delay,
    "corrupt": _corrupt,
}


def _event(bag: OptionBag) -> str:
    event = bag.required("event")
    if event not in EVENTS:
        raise InvalidRequestError(f"{bag.owner}: there is no event {event!r}")
    return event


def _number(bag: OptionBag, key: str, default: int) -> int:
    value = bag.size(key, default)
    assert value is not None
    if value > MAX_STATE:
        raise InvalidRequestError(f"{bag.owner}: option {key!r} is at most {MAX_STATE}")
    return value


def _errno(bag: OptionBag) -> int:
    """A number, as in QEMU (those of Linux), or a name such as "ENOSPC"."""
    value = bag.take("errno", errno.EIO)
    named = getattr(errno, value, None) if isinstance(value, str) else None
    if isinstance(named, int):
        return named
    number = value if isinstance(value, int) else int(value) if str(value).isdecimal() else 0
    if number not in errno.errorcode:
        raise InvalidRequestError(f"{bag.owner}: option 'errno' is no error number: {value!r}")
    return int(number)


def _where(bag: OptionBag) -> Where:
    offset, length = bag.size("offset"), bag.size("length")
    sector = bag.take("sector", -1)
    if sector not in (-1, "-1"):
        sectors = OptionBag({"sector": sector}, bag.owner).size("sector")
        assert sectors is not None
        offset, length = sectors * SECTOR, SECTOR
    kind = bag.choice("iotype", tuple(kind.value for kind in IoType), "") if "iotype" in bag else ""
    return Where(
        iotypes=frozenset({IoType(kind)}) if kind else USUAL,
        offset=0 if offset is None and length is not None else offset,
        length=length,
        skip=_number(bag, "skip", 0),
        once=bag.boolean("once"),
    )


# -- the driver ------------------------------------------------------------------------------------


class BlkdebugDriver:
    """``{"driver": "blkdebug", "image": …, "config": …, "align": …, "inject-error": …, …}``."""

    children = ("image",)
    images: frozenset[str] = frozenset()

    def parse_name(self, name: str) -> dict[str, Any]:
        config, colon, image = name.removeprefix("blkdebug:").partition(":")
        if not (colon and image):
            raise InvalidRequestError(f"{name!r} is not of the form blkdebug:[CONFIG]:IMAGE")
        options = {"driver": "blkdebug", "image": {"filename": image}}
        return {**options, "config": config} if config else options

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> BlockDevice:
        try:
            config = options.string("config")
            limits = Limits.take(options)
            rules = [] if config is None else parse_rules(read_config(config), config)
            rules += parse_rules(options.rest(), options.owner)
            faults = Faults(children["image"], rules)
            return faults if limits == Limits() else Limited(faults, limits)
        except BaseException:
            close_all(*children.values())
            raise


FILTER = BlkdebugDriver()
