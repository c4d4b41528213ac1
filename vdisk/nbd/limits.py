"""How much a peer can make a state machine hold: every bound, and why it is that large.

The machines never hold more than a bound allows, whatever arrives.  All bounds are fields of
:class:`Limits`, so that a program which knows its peers can tighten or widen them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vdisk.nbd.wire import MAX_STRING

MAX_OPTION_DATA: Final = 64 * 1024
"""Bytes of one option's data.  The largest in use, NBD_OPT_SET_META_CONTEXT, holds an export name
of 4 KiB and then as many queries; 64 KiB is 15 of the longest, or 2000 of usual ones."""

MAX_OPTIONS: Final = 10_000
"""Options in one handshake.  ``nbdinfo --list`` sends two for each export: 5000 exports."""

MAX_SKIPPED: Final = 2**25
"""Bytes read and thrown away of an option or a payload that is too large to accept, so that an
error can be answered.  The specification asks to forgive payloads up to 2^25; beyond that the
peer is taken for an attacker and the connection ends."""

MAX_OPTION_REPLY_DATA: Final = 4 + MAX_STRING + MAX_STRING
"""Bytes of one option reply's data: NBD_REP_SERVER with the longest name and description."""

MAX_OPTION_REPLIES_DATA: Final = 8 * 2**20
"""Bytes of all replies to one option: a list of 100 000 exports with usual names."""

MAX_OPTION_REPLIES: Final = 100_000
"""Replies to one option, however short."""

MAX_PAYLOAD: Final = 2**25
"""Bytes of one request or reply payload when nothing else was negotiated: the specification's
default, and what QEMU and libnbd send at most."""

MAX_STATUS_DESCRIPTORS: Final = 2**20
"""Extents in one block status chunk: the specification's "SHOULD NOT send more"."""

MAX_STATUS_IDS: Final = 1024
"""Meta context ids in the payload form of NBD_CMD_BLOCK_STATUS."""

MAX_READ_FRAGMENTS: Final = 2**15
"""Separate pieces of one structured read.  Pieces that touch are merged, so a server that answers
in order needs one; 2^15 is 32 MiB in 512 byte pieces with every second one still missing."""

MAX_ERROR_CHUNKS: Final = 256
"""Error chunks in one reply.  Servers send one; the protocol allows one for each bad offset."""

MAX_ERROR_PAYLOAD: Final = 2 * MAX_STRING
"""Bytes of one error chunk: the longest message, and the fields of types not yet invented."""

MAX_REQUESTS_IN_FLIGHT: Final = 1024
"""Requests of one connection that are not answered yet.  The Linux kernel and libnbd stay below
128, fio's deepest queues at 1024."""

MAX_RECEIVE_BUFFER: Final = 2**24
"""Bytes received and not parsed yet.  A machine whose ``wants_data`` is false must not be fed;
this holds one of the largest reads a program makes from a socket, several times."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection; the module's constants explain each."""

    option_data: int = MAX_OPTION_DATA
    options: int = MAX_OPTIONS
    skipped: int = MAX_SKIPPED
    option_reply_data: int = MAX_OPTION_REPLY_DATA
    option_replies_data: int = MAX_OPTION_REPLIES_DATA
    option_replies: int = MAX_OPTION_REPLIES
    payload: int = MAX_PAYLOAD
    status_descriptors: int = MAX_STATUS_DESCRIPTORS
    status_ids: int = MAX_STATUS_IDS
    read_fragments: int = MAX_READ_FRAGMENTS
    error_chunks: int = MAX_ERROR_CHUNKS
    error_payload: int = MAX_ERROR_PAYLOAD
    requests_in_flight: int = MAX_REQUESTS_IN_FLIGHT
    receive_buffer: int = MAX_RECEIVE_BUFFER


DEFAULT_LIMITS: Final = Limits()
