"""Changing text: words of the language put in, taken out, doubled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fuzz.mutate import change_bytes

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

_PIECES = re.compile(rb"[\w.+-]+|\W")


def change_text(data: bytes, words: Sequence[str], rng: random.Random) -> bytes:
    """The text with one of its words changed, seldom some more."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        data = _change_word(data, words, rng)
    return data


def _change_word(data: bytes, words: Sequence[str], rng: random.Random) -> bytes:
    pieces = _PIECES.findall(data) or [b""]
    number = rng.randrange(len(pieces))
    word = rng.choice(words).encode("utf-8", "surrogatepass")
    match rng.randrange(7):
        case 0 | 1:
            pieces[number] = word
        case 2:
            pieces.insert(number, word)
        case 3:
            del pieces[number]
        case 4:
            other = rng.randrange(len(pieces))
            pieces[number], pieces[other] = pieces[other], pieces[number]
        case 5:
            start, end = sorted((number, rng.randrange(len(pieces))))
            pieces[end:end] = pieces[start:end]
        case 6:
            changed = bytearray(data)
            change_bytes(changed, rng, 4)
            return bytes(changed)
    return b"".join(pieces)
