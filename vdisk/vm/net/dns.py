"""DNS where the host has no server of its own to ask: names by the host's resolver (RFC 1035).

A query is a header of 12 bytes and one question: labels, each with its length, type and class.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

PORT: Final = 53
TYPE_A, TYPE_AAAA, CLASS_IN = 1, 28, 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED = 0, 1, 2, 3, 4
RESPONSE, RECURSION_DESIRED, RECURSION_AVAILABLE = 0x8000, 0x0100, 0x0080
LONGEST_NAME: Final = 255
MOST_ADDRESSES: Final = 16
SECONDS: Final = 60
"""How long a guest may remember an answer."""

_HEADER: Final = struct.Struct("!HHHHHH")
_POINTER_TO_QUESTION: Final = b"\xc0\x0c"


class Question(NamedTuple):
    """``raw``: as it stands in the query."""

    identifier: int
    flags: int
    name: str
    kind: int
    raw: bytes


def parse(query: bytes) -> Question | None:
    """The question of a standard query; None for what is none."""
    if len(query) < _HEADER.size:
        return None
    identifier, flags, questions, _, _, _ = _HEADER.unpack_from(query)
    if flags & (RESPONSE | 0x7800) or questions != 1:
        return None
    labels, place = [], _HEADER.size
    while place < len(query) and query[place]:
        length = query[place]
        label = query[place + 1 : place + 1 + length]
        if length > 63 or len(label) < length or place > LONGEST_NAME + _HEADER.size:
            return None
        labels.append(label.decode("latin-1"))
        place += 1 + length
    end = place + 5
    if end > len(query) or not labels:
        return None
    kind, _class = struct.unpack_from("!HH", query, place + 1)
    return Question(identifier, flags, ".".join(labels), kind, query[_HEADER.size : end])


def response(question: Question, code: int, addresses: list[bytes]) -> bytes:
    """The answer: a record for each address."""
    flags = RESPONSE | RECURSION_AVAILABLE | question.flags & RECURSION_DESIRED | code
    records = b"".join(
        _POINTER_TO_QUESTION
        + struct.pack("!HHIH", question.kind, CLASS_IN, SECONDS, len(address))
        + address
        for address in addresses
    )
    header = _HEADER.pack(question.identifier, flags, 1, len(addresses), 0, 0)
    return header + question.raw + records


def resolve(question: Question) -> bytes:
    """Ask the host's resolver, which may take its time."""
    families = {TYPE_A: socket.AF_INET, TYPE_AAAA: socket.AF_INET6}
    family = families.get(question.kind)
    if family is None:
        return response(question, NO_ERROR, [])
    try:
        found = socket.getaddrinfo(question.name, None, family, socket.SOCK_STREAM)
    except UnicodeError:
        return response(question, FORMAT_ERROR, [])
    except OSError as error:
        missing = getattr(socket, "EAI_NONAME", None), getattr(socket, "EAI_NODATA", None)
        code = NAME_ERROR if error.errno in missing else SERVER_FAILURE
        return response(question, code, [])
    addresses = [socket.inet_pton(family, str(entry[4][0]).partition("%")[0]) for entry in found]
    return response(question, NO_ERROR, list(dict.fromkeys(addresses))[:MOST_ADDRESSES])


def host_server(path: str = "/etc/resolv.conf") -> str | None:
    """The first IPv4 server that the host asks; None where it says none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) >= 2 and words[0] == "nameserver" and words[1].count(".") == 3:
                    return words[1]
    except OSError:
        pass
    return None
