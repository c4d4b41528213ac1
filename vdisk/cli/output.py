"""What the commands print: JSON as QEMU's tools write it, tables, progress.

QEMU keeps the keys of a JSON object in a hash table of 512 buckets and prints them bucket by
bucket.  Doing the same makes our JSON theirs byte for byte, so that a ``diff`` shows only what
differs in the images.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType
    from typing import Self

_BUCKETS = 512


def _bucket(key: str) -> int:
    """Where QEMU's dictionary keeps ``key``: the hash function of the Samba project's tdb."""
    name = key.encode()
    value = 0x238F13AF * len(name)
    for index, byte in enumerate(name):
        value += byte << (index * 5 % 24)
    return (1103515243 * value + 12345) % (1 << 32) % _BUCKETS


def in_json_order(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The items of a dictionary as QEMU orders them."""
    return [(key, value[key]) for key in sorted(value, key=_bucket)]


def print_json(value: Any) -> None:
    """Print ``value`` as ``--output=json`` does."""
    print("".join(_json(value, "\n")))


def _json(value: Any, newline: str) -> Iterator[str]:
    """The text of ``value`` in pieces; ``newline`` ends with the indentation of its line."""
    if isinstance(value, dict):
        members = [(_string(key) + ": ", item) for key, item in in_json_order(value)]
        yield from _items("{", members, "}", newline)
    elif isinstance(value, list | tuple):
        yield from _items("[", [("", item) for item in value], "]", newline)
    elif isinstance(value, str):
        yield _string(value)
    elif isinstance(value, bool):
        yield "true" if value else "false"
    else:
        yield "null" if value is None else str(value)


def _items(
    opening: str, items: Sequence[tuple[str, Any]], closing: str, newline: str
) -> Iterator[str]:
    yield opening
    for index, (prefix, item) in enumerate(items):
        yield ("," if index else "") + newline + "    " + prefix
        yield from _json(item, newline + "    ")
    yield newline + closing


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r"}
_ESCAPES["\t"] = "\\t"


def _string(text: str) -> str:
    """``text`` quoted, all but printable ASCII escaped; bytes that are no UTF-8 as U+FFFD."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if 0x20 <= code < 0x7F:
        return character
    if 0xD800 <= code < 0xE000:  # a byte that is no UTF-8, as file names may hold
        return "\\uFFFD"
    if code < 0x10000:
        return f"\\u{code:04X}"
    code -= 0x10000
    return f"\\u{0xD800 | code >> 10:04X}\\u{0xDC00 | code & 0x3FF:04X}"


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: str = "",
    *,
    least: Sequence[int] = (),
    gap: str = "  ",
) -> str:
    """``rows`` in columns under their ``headings``; ``right``: the right-aligned ones, by commas.

    Only as wide as needed, but at ``least`` so, with a ``gap`` between columns and no space at
    the end of a line.
    """
    lines = [headings, *rows]
    widths = [
        max(smallest, *(len(line[column]) for line in lines))
        for column, smallest in enumerate(least or (0,) * len(headings))
    ]
    flush_right = [heading in right.split(",") for heading in headings]
    return "\n".join(
        gap.join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, flush_right, strict=True)
        ).rstrip()
        for line in lines
    )


def print_create_options(format: str) -> None:
    """What ``-o help`` shows: the options that images of ``format`` are created with."""
    from vdisk import formats

    print(f"Supported {format} options:")
    print_options((*formats.driver(format).create_options, *formats.FILE_OPTIONS))


def print_options(options: Sequence[Any]) -> None:
    """Options with their types, one a line, by name."""
    kinds = {"bool": "bool (on/off)", "string": "str", "enum": "str", "number": "num"}
    for option in sorted(options):
        kind = f"{option.name}=<{kinds.get(option.type, option.type)}>"
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        default = f" [{option.default}]" if option.default is not None else ""
        print(f"  {kind:<24} - {option.help}{choices}{default}")


class Progress:
    """``-p``: a callback for jobs, ``progress(done, total)``, and what it draws.

    On a terminal a bar with the time left, behind its ``title``; elsewhere qemu-img's
    ``(12.34/100%)`` and carriage return, which programs read.  Without ``-p``, as with qemu-img,
    the signal SIGUSR1 makes it tell on stderr how far it is.  Use it as a context manager, so
    that the line is ended.
    """

    REDRAW_SECONDS = 0.1
    STEP = 0.01
    """What programs are told of, as of qemu-img: each hundredth, however fast it goes."""

    def __init__(self, enabled: bool, title: str = "", file: TextIO | None = None) -> None:
        self._enabled, self._title = enabled, title
        self._file = sys.stdout if file is None else file
        self._terminal = enabled and self._file.isatty()
        self._began = time.monotonic()
        self._next = 0.0
        self._drawn = False
        self._reached = (0, 0)
        self._handler: Any = None

    def __call__(self, done: int, total: int) -> None:
        self._reached = (done, total)
        if not self._enabled:
            return
        now, share = time.monotonic(), _share(done, total)
        measure, step = (now, self.REDRAW_SECONDS) if self._terminal else (share, self.STEP)
        if measure < self._next and done < total:
            return
        self._next = measure + step
        self._drawn = True
        self._file.write(self._bar(share, now) if self._terminal else f"{_percentage(share)}\r")
        self._file.flush()

    def _bar(self, share: float, now: float) -> str:
        spent = now - self._began
        left = f"{_duration(spent / share - spent)} left" if 0 < share < 1 else _duration(spent)
        text = f" {share:6.1%}  {left}"
        columns = os.get_terminal_size(self._file.fileno()).columns
        room = max(columns - len(self._title) - len(text) - 4, 10)
        full = round(share * room)
        return f"\r{self._title}[{'#' * full}{'.' * (room - full)}]{text}\x1b[K"

    def _tell(self, _number: int, _frame: FrameType | None) -> None:
        sys.stderr.write(f"{_percentage(_share(*self._reached))}\n")

    def __enter__(self) -> Self:
        if not self._enabled and hasattr(signal, "SIGUSR1"):
            self._handler = signal.signal(signal.SIGUSR1, self._tell)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGUSR1, self._handler)
        if self._drawn:
            self._file.write("\n")
            self._file.flush()


def _share(done: int, total: int) -> float:
    return min(done / total, 1.0) if total else 1.0


def _percentage(share: float) -> str:
    return f"    ({share * 100:.2f}/100%)"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
