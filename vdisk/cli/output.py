"""What the commands print: JSON as QEMU's tools write it, tables, progress.

QEMU keeps the keys of a JSON object in a hash table of 512 buckets and prints them bucket by
bucket.  Doing the same makes our JSON theirs byte for byte, so that a ``diff`` shows only what
differs in the images.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

_BUCKETS = 512


def _bucket(key: str) -> int:
    """Where QEMU's dictionary keeps ``key``: the hash function of the Samba project's tdb."""
    name = key.encode()
    value = 0x238F13AF * len(name)
    for index, byte in enumerate(name):
        value += byte << (index * 5 % 24)
    return (1103515243 * value + 12345) % (1 << 32) % _BUCKETS


def ordered(value: Any) -> Any:
    """``value`` with the keys of every dictionary in QEMU's order."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value, key=_bucket)}
    if isinstance(value, list):
        return [ordered(item) for item in value]
    return value


def print_json(value: Any) -> None:
    """Print ``value`` as ``--output=json`` does."""
    import json

    print(json.dumps(ordered(value), indent=4))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """``rows`` in columns under their ``headings``; ``right``: headings of right-aligned ones.

    Only as wide as needed, two spaces between columns, no space at the end of a line.
    """
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    flush_right = [heading in right.split() for heading in headings]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, flush_right, strict=True)
        ).rstrip()
        for line in lines
    )


def print_create_options(format: str) -> None:
    """What ``-o help`` shows: the options that images of ``format`` are created with."""
    from vdisk import formats

    print(f"Supported {format} options:")
    print_options(formats.driver(format).create_options)


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

    On a terminal a bar with the time left; elsewhere qemu-img's ``(12.34/100%)`` and carriage
    return, which programs read.  Use it as a context manager, so that the line is ended.
    """

    REDRAW_SECONDS = 0.1

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._terminal = enabled and sys.stdout.isatty()
        self._began = time.monotonic()
        self._next = 0.0
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._enabled or (now < self._next and done < total):
            return
        self._next = now + self.REDRAW_SECONDS
        self._drawn = True
        share = min(done / total, 1.0) if total else 1.0
        sys.stdout.write(self._bar(share, now) if self._terminal else f"    ({share:.2%}/100%)\r")
        sys.stdout.flush()

    def _bar(self, share: float, now: float) -> str:
        spent = now - self._began
        left = f"{_duration(spent / share - spent)} left" if 0 < share < 1 else _duration(spent)
        text = f" {share:6.1%}  {left}"
        room = max(shutil.get_terminal_size().columns - len(text) - 4, 10)
        full = round(share * room)
        return f"\r[{'#' * full}{'.' * (room - full)}]{text}\x1b[K"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawn:
            sys.stdout.write("\n")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
