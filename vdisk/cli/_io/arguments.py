"""The words of a command: options as getopt reads them, offsets, lengths, pattern bytes.

All readers raise :class:`CommandFailed` with the sentence that qemu-io prints.
"""

from __future__ import annotations

import getopt
import re
from typing import NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.units import parse_size, round_down

MAX_REQUEST = round_down((1 << 31) - 1, 512)
"""The longest request of QEMU's block layer, and so of its scripts; it bounds our buffers."""

_LOOKS_LIKE_SIZE = re.compile(r"0x[0-9a-f]+|\d+[bkmgtpe]?|\d+\.\d+[kmgtpe]", re.IGNORECASE)

_C_NUMBERS = (
    (re.compile(r"0x[0-9a-f]+", re.IGNORECASE), 16),
    (re.compile(r"0[0-7]*"), 8),
    (re.compile(r"[1-9][0-9]*"), 10),
)


class CommandFailed(Exception):
    """A command did not work; the message is printed where qemu-io prints it.

    ``to_stderr``: as opposed to stdout, where most of them go.  An empty message has been
    said already.
    """

    def __init__(self, message: str = "", *, to_stderr: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.to_stderr = to_stderr


class UsageError(CommandFailed):
    """The words do not fit the command: its usage line is printed after the message."""


class Arguments(NamedTuple):
    """The words after a command's name.  ``options``: letter to value, "" without one."""

    options: dict[str, str]
    operands: list[str]

    def has(self, letter: str) -> bool:
        """True if ``-letter`` was given."""
        return letter in self.options


def parse_words(name: str, words: list[str], letters: str) -> Arguments:
    """``words`` with the options that ``letters`` (as for getopt(3)) names taken out."""
    try:
        found, operands = getopt.gnu_getopt(words, letters)
    except getopt.GetoptError as error:
        takes_value = f"{error.opt}:" in letters
        problem = "option requires an argument" if takes_value else "invalid option"
        raise UsageError(f"{name}: {problem} -- '{error.opt}'", to_stderr=True) from None
    return Arguments({option[1:]: value for option, value in found}, operands)


def parse_number(text: str) -> int:
    """An offset or length: "65536", "64k", "1.5M", "0x200"."""
    try:
        return parse_size(text)
    except InvalidRequestError:
        reason = "non-numeric argument, or extraneous/unrecognized suffix"
        if _LOOKS_LIKE_SIZE.fullmatch(text):
            reason = "argument too large"
        raise CommandFailed(f"Parsing error: {reason} -- {text}") from None


def parse_length(text: str, *, hint: str = "") -> int:
    """The length of a request, at most :data:`MAX_REQUEST`."""
    length = parse_number(text)
    if length > MAX_REQUEST:
        raise CommandFailed(f"length cannot exceed {MAX_REQUEST}{hint}, given {text}")
    return length


def parse_lengths(texts: list[str]) -> list[int]:
    """The lengths of the buffers of one vectored request."""
    lengths = []
    for text in texts:
        length = parse_number(text)
        if length > MAX_REQUEST:
            raise CommandFailed(f"Argument '{text}' exceeds maximum size {MAX_REQUEST}")
        lengths.append(length)
        if sum(lengths) > MAX_REQUEST:
            raise CommandFailed(f"The total number of bytes exceed the maximum size {MAX_REQUEST}")
    return lengths


def parse_pattern(text: str) -> int:
    """A byte in C's notation: 170, 0xaa, 0252."""
    for notation, base in _C_NUMBERS:
        if notation.fullmatch(text) and int(text, base) <= 0xFF:
            return int(text, base)
    raise CommandFailed(f"{text} is not a valid pattern byte")
