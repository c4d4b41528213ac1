"""Numbers as a person at the monitor writes them: ``$eip + 4``, ``0xb8000 | (2 * 80)``.

::

    sum     = product { ("+" | "-") product }        values are 64 bits and wrap around;
    product = unary { ("*" | "/" | "%" | "&" | "|" | "^") unary }      all of these bind alike,
    unary   = ("+" | "-" | "~") unary | value        as in QEMU's monitor
    value   = number | $register | "(" sum ")"
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MASK = (1 << 64) - 1
DEEPEST = 50
"""Parentheses within each other."""
_TOKEN = re.compile(r"\s*(?:(0[xX][0-9a-fA-F]+|\d+)|\$(\w+)|([-+*/%&|^~()]))")
_SUMS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: dict[str, Callable[[int, int], int]] = {
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
}


def evaluate(text: str, registers: Mapping[str, int]) -> int:
    """The value, 64 bits.  Raises InvalidRequestError where it is none."""
    return _Reader(text, registers).whole()


class _Reader:
    def __init__(self, text: str, registers: Mapping[str, int]) -> None:
        self._registers = registers
        self._tokens: list[int | str] = []
        self._at = self._depth = 0
        position, text = 0, text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise InvalidRequestError(
                    f"invalid char '{text[position:].strip()[0]}' in expression"
                )
            self._tokens.append(self._meaning(*match.groups()))
            position = match.end()

    def _meaning(self, digits: str | None, register: str | None, sign: str | None) -> int | str:
        if digits is not None:
            octal = digits.startswith("0") and digits[1:].isdigit()
            try:
                return int(digits, 8 if octal else 0)
            except ValueError:
                raise InvalidRequestError(f"invalid number: {digits}") from None
        if register is None:
            return sign or ""
        if register.lower() not in self._registers:
            raise InvalidRequestError(f"unknown register: {register}")
        return self._registers[register.lower()]

    def whole(self) -> int:
        value = self._sum()
        if self._at < len(self._tokens):
            raise InvalidRequestError(f"'{self._tokens[self._at]}' is not expected in expression")
        return value & MASK

    def _next(self) -> int | str:
        if self._at == len(self._tokens):
            raise InvalidRequestError("unexpected end of expression")
        self._at += 1
        return self._tokens[self._at - 1]

    def _operator(self, table: Mapping[str, object]) -> str:
        """The next token if it is one of these; "" otherwise."""
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        if not isinstance(token, str) or token not in table:
            return ""
        self._at += 1
        return token

    def _sum(self) -> int:
        value = self._product()
        while sign := self._operator(_SUMS):
            value = _SUMS[sign](value, self._product()) & MASK
        return value

    def _product(self) -> int:
        value = self._unary()
        while sign := self._operator(_PRODUCTS):
            other = self._unary()
            if sign in "/%" and not other:
                raise InvalidRequestError("division by zero")
            value = _PRODUCTS[sign](value, other) & MASK
        return value

    def _unary(self) -> int:
        self._depth += 1
        if self._depth > DEEPEST:
            raise InvalidRequestError("the expression is too deep")
        try:
            token = self._next()
            if isinstance(token, int):
                return token & MASK
            if token == "(":
                value = self._sum()
                if self._next() != ")":
                    raise InvalidRequestError("')' expected")
                return value
            if token in ("+", "-", "~"):
                value = self._unary()
                return {"+": value, "-": -value, "~": ~value}[token] & MASK
            raise InvalidRequestError(f"'{token}' is not expected in expression")
        finally:
            self._depth -= 1
