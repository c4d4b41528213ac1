"""Options as QEMU writes them: ``key=value,key=value``, dotted keys, and typed reading of them.

A comma inside a value is doubled, and a dot in a key opens a level::

    driver=qcow2,file.filename=a,,b.img   ->   {"driver": "qcow2", "file": {"filename": "a,b.img"}}

Values that come from a command line are strings, those from ``json:`` names have types;
:class:`OptionBag` reads both, and refuses what nobody has read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Secrets = Mapping[str, bytes | Mapping[str, str]]
    """What options refer to by id: passphrases, and the properties of other objects of QEMU's
    (``tls-creds-x509``…), each with its "qom-type"."""

MAX_OPTION_DEPTH = 64
"""Levels of nested options: a node for each file and filter of a stack, so far beyond use."""

NOT_IN_NAMES = frozenset("/:")
"""No option has these in its name; paths and URIs have, often before a "="."""

_TRUE = ("on", "yes", "true", "y")
_FALSE = ("off", "no", "false", "n")


def split_secrets(
    secrets: Secrets | None,
) -> tuple[dict[str, bytes], dict[str, Mapping[str, str]]]:
    """The passphrases, and the other objects, by id."""
    passphrases: dict[str, bytes] = {}
    objects: dict[str, Mapping[str, str]] = {}
    for identity, value in (secrets or {}).items():
        if isinstance(value, bytes):
            passphrases[identity] = value
        else:
            objects[identity] = value
    return passphrases, objects


def split_commas(text: str) -> list[str]:
    """The parts between single commas, with each doubled comma become one."""
    parts: list[str] = []
    current, position = "", 0
    while True:
        comma = text.find(",", position)
        if comma < 0:
            return [*parts, current + text[position:]]
        current += text[position:comma]
        if text[comma + 1 : comma + 2] == ",":
            current += ","
            position = comma + 2
        else:
            parts.append(current)
            current, position = "", comma + 1


def escape_commas(value: str) -> str:
    """``value`` as it must be written inside ``key=value,…``."""
    return value.replace(",", ",,")


def parse_keyval(text: str, *, implied_key: str | None = None) -> dict[str, str]:
    """``key=value,key=value`` as a flat dictionary; a later key replaces an earlier one.

    ``implied_key``: names a first part without "=", and one that is a URI or a path, whatever is
    in it.  Elsewhere ``key`` alone means ``key=on`` and ``nokey`` means ``key=off``, as in QEMU.
    """
    found: dict[str, str] = {}
    for index, part in enumerate(split_commas(text)):
        key, equals, value = part.partition("=")
        implied = implied_key if index == 0 else None
        if not equals or (implied and not NOT_IN_NAMES.isdisjoint(key)):
            key, value = _short_form(part, implied)
        if not key:
            raise InvalidRequestError(f"option list {text!r} has an option without a name")
        found[key] = value
    return found


def _short_form(part: str, implied_key: str | None) -> tuple[str, str]:
    if implied_key is not None:
        return implied_key, part
    return (part[2:], "off") if part.startswith("no") else (part, "on")


def nest(flat: Mapping[str, Any], *, depth: int = 0) -> dict[str, Any]:
    """Dotted keys as nested dictionaries; values that are dictionaries are nested too."""
    if depth > MAX_OPTION_DEPTH:
        raise InvalidRequestError(f"options are nested more than {MAX_OPTION_DEPTH} levels deep")
    tree: dict[str, Any] = {}
    for key, given in flat.items():
        value = nest(given, depth=depth + 1) if isinstance(given, dict) else given
        levels = key.split(".")
        if len(levels) > MAX_OPTION_DEPTH:
            raise InvalidRequestError(f"options nest more than {MAX_OPTION_DEPTH} levels deep")
        _put(tree, levels, value, key)
    return tree


def _put(tree: dict[str, Any], levels: list[str], value: Any, key: str) -> None:
    for level in levels[:-1]:
        tree = tree.setdefault(level, {})
        if not isinstance(tree, dict):
            raise InvalidRequestError(f"option {key!r}: {level!r} has a value already")
    last = levels[-1]
    if last not in tree:
        tree[last] = value
    elif isinstance(tree[last], dict) and isinstance(value, dict):
        for inner, inner_value in value.items():
            _put(tree[last], [inner], inner_value, f"{key}.{inner}")
    else:
        raise InvalidRequestError(f"option {key!r} is given twice")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested options with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_bool(value: Any, what: str) -> bool:
    """True or false as JSON, "on"/"off", "yes"/"no", "true"/"false" or "y"/"n" say it."""
    if isinstance(value, bool):
        return value
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidRequestError(f"{what} is 'on' or 'off', not {value!r}")


def as_size(value: Any, what: str) -> int:
    """Bytes from a JSON number or from text such as "64k"."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise InvalidRequestError(f"{what} {value} is negative")
        return value
    if isinstance(value, str):
        return parse_size(value, what=what)
    raise InvalidRequestError(f"{what} is a size, not {value!r}")


def as_string(value: Any, what: str) -> str:
    """Text, as it is."""
    if isinstance(value, str):
        return value
    raise InvalidRequestError(f"{what} is text, not {value!r}")


class OptionBag:
    """Options of one node, read by type; :meth:`finish` refuses those that nobody read.

    ``owner``: what errors call the node ("driver 'file'").
    """

    def __init__(self, options: Mapping[str, Any], owner: str) -> None:
        self._left = dict(options)
        self.owner = owner

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, default: Any = None) -> Any:
        """The value as it was given, which then counts as read."""
        return self._left.pop(key, default)

    def string(self, key: str, default: str | None = None) -> str | None:
        value = self._left.pop(key, None)
        return default if value is None else as_string(value, self._what(key))

    def required(self, key: str) -> str:
        value = self.string(key)
        if value is None:
            raise InvalidRequestError(f"{self.owner} needs the option {key!r}")
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self._left.pop(key, None)
        return default if value is None else as_bool(value, self._what(key))

    def size(self, key: str, default: int | None = None) -> int | None:
        value = self._left.pop(key, None)
        return default if value is None else as_size(value, self._what(key))

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self._left.pop(key, None)
        if value is None:
            return default
        if value not in choices:
            raise InvalidRequestError(
                f"{self._what(key)} is one of {', '.join(choices)}, not {value!r}"
            )
        return as_string(value, self._what(key))

    def rest(self) -> dict[str, Any]:
        """What is left, all of which then counts as read."""
        left, self._left = self._left, {}
        return left

    def finish(self) -> None:
        """Raise :class:`InvalidRequestError` if an option was not read."""
        if self._left:
            unknown = ", ".join(repr(key) for key in sorted(self._left))
            raise InvalidRequestError(f"{self.owner} has no option {unknown}")

    def _what(self, key: str) -> str:
        return f"{self.owner}: option {key!r}"
