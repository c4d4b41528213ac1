"""JSON values in a stream of bytes (docs/interop/qmp-spec: "Server Output", "Client input").

QMP has no separators: a value ends where its brackets are closed, wherever the lines end.  What is
no JSON is reported once and dropped to the end of its line, where most clients begin anew; a
control character or a byte of 0xFF, which are in no JSON, drop what came before them.  Strings may
stand in single quotes, as the documentation of QEMU has them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from vdisk.errors import VdiskError

LARGEST = 1 << 20
"""Bytes of one value: commands are short, QEMU's own limit is 64 MiB."""
DEEPEST = 64
"""Brackets within brackets: no command has more than 5."""

_RESET = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\xff]")
_SPACE = b" \t\r\n"
_DELIMITERS = re.compile(rb'["\'\\{}\[\]\n]')
_SINGLE_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"|\'((?:[^\'\\]|\\.)*)\'')
_SCALAR_END = re.compile(rb"[\s{}\[\]]")


class JsonError(VdiskError):
    """What came is not JSON, or too much of it."""

    kind = "protocol"


class JsonStream:
    """Cuts a stream into values; ``receive`` raises nothing, errors are among the values."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._depth = 0
        self._quote = b""
        self._dropping = False

    def receive(self, data: bytes) -> list[Any | JsonError]:
        """The values that end in ``data``, in order."""
        found: list[Any | JsonError] = []
        first, *pieces = _RESET.split(data)
        self._receive(first, found)
        for piece in pieces:
            if self._buffer:
                found.append(JsonError("JSON parse error, a value was not finished"))
            self._forget()
            self._dropping = False
            self._receive(piece, found)
        return found

    def _receive(self, data: bytes, found: list[Any | JsonError]) -> None:
        self._buffer += data
        while (value := self._next()) is not None:
            found.append(value[0])
        if len(self._buffer) > LARGEST:
            self._drop(found, f"JSON message size limit exceeded ({LARGEST} bytes)")

    def _forget(self) -> None:
        """Drop everything that is not whole."""
        self._buffer.clear()
        self._at = self._depth = 0
        self._quote = b""

    def _drop(self, found: list[Any | JsonError], reason: str) -> None:
        """Report what is wrong, and pass over the rest of the line."""
        found.append(JsonError(reason))
        self._forget()
        self._dropping = True

    def _next(self) -> tuple[Any | JsonError] | None:
        """One value, in a tuple; None if there is none whole."""
        if self._dropping:
            end = self._buffer.find(b"\n")
            del self._buffer[: end + 1 if end >= 0 else len(self._buffer)]
            if end < 0:
                return None
            self._dropping = False
        if not self._at:
            del self._buffer[: len(self._buffer) - len(self._buffer.lstrip(_SPACE))]
            if not self._buffer:
                return None
            if self._buffer[0] not in b"{[":
                return self._scalar()
        return self._structure()

    def _scalar(self) -> tuple[Any | JsonError] | None:
        """A number, a word, a string: up to white space, or whatever is not part of it."""
        end = _SCALAR_END.search(self._buffer, 1)
        if end is None:
            return None
        return (self._parse(end.start()),)

    def _structure(self) -> tuple[Any | JsonError] | None:
        """An object or array: up to the bracket that closes the first."""
        while (found := _DELIMITERS.search(self._buffer, self._at)) is not None:
            character = found.group()
            self._at = found.end()
            if self._quote:
                if character == b"\n":
                    return self._broken("control characters in a string")
                if character == b"\\":
                    if self._at == len(self._buffer):  # what it escapes is not here yet
                        self._at -= 1
                        return None
                    self._at += 1
                elif character == self._quote:
                    self._quote = b""
            elif character in (b'"', b"'"):
                self._quote = character
            elif character in b"{[":
                self._depth += 1
                if self._depth > DEEPEST:
                    return self._broken("JSON nesting depth limit exceeded")
            elif character in b"}]":
                self._depth -= 1
                if not self._depth:
                    return (self._parse(self._at),)
        self._at = len(self._buffer)
        return None

    def _broken(self, reason: str) -> tuple[JsonError]:
        end = self._buffer.find(b"\n", max(self._at - 1, 0))
        rest = bytes(self._buffer[end:]) if end >= 0 else b""
        self._forget()
        self._buffer += rest
        self._dropping = True
        return (JsonError(f"JSON parse error, {reason}"),)

    def _parse(self, end: int) -> Any | JsonError:
        text = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._at = self._depth = 0
        if b"'" in text:
            text = _SINGLE_QUOTED.sub(_double_quoted, text)
        try:
            return json.loads(text.decode("utf-8"), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return JsonError(f"JSON parse error, {error}")


def _double_quoted(found: re.Match[bytes]) -> bytes:
    """A string as JSON has it."""
    if found[1] is None:
        return found[0].replace(rb"\'", b"'")
    return b'"' + found[1].replace(rb"\'", b"'").replace(b'"', rb"\"") + b'"'


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number")
