"""Whose fault it was: ours, the peer's, or nobody's (a request that failed).

* :class:`LocalProtocolError`: the program called a state machine in a way the protocol forbids.
  Nothing was sent; the connection is as it was.
* :class:`RemoteProtocolError`: the peer broke the protocol.  No later byte of the connection can be
  trusted: close it (what the specification calls a hard disconnect).
* :class:`NegotiationError`: the server refused what the client needs.  It carries the
  :class:`~vdisk.nbd.wire.OptionReply`; the client leaves with ``NBD_OPT_ABORT``.
* :class:`RequestError`: one request failed with an :class:`~vdisk.nbd.wire.ErrorValue`.  The
  connection goes on.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from vdisk.nbd.wire import ErrorValue, OptionReply


class NbdError(VdiskError):
    """Base of every error of the NBD protocol."""

    kind = "nbd"


class LocalProtocolError(NbdError):
    kind = "nbd-local-protocol"
    default_errno = errno.EINVAL


class RemoteProtocolError(NbdError):
    kind = "nbd-remote-protocol"
    default_errno = errno.EPROTO


class NegotiationError(NbdError):
    """The server refused an option the client cannot do without, or offers too little.

    ``reply`` is ``None`` where the server cannot say why: an oldstyle or not fixed newstyle
    server, or one that closed the connection instead of an answer to NBD_OPT_EXPORT_NAME.
    """

    kind = "nbd-negotiation"
    default_errno = errno.ECONNREFUSED

    def __init__(self, message: str, *, reply: OptionReply | None = None) -> None:
        super().__init__(message, operation="negotiate")
        self.reply = reply


class RequestError(NbdError):
    """One request failed; ``value`` is the error on the wire, ``errno`` this system's for it."""

    kind = "nbd-request"

    def __init__(self, value: ErrorValue, message: str, *, offset: int | None = None) -> None:
        super().__init__(message, offset=offset, errno=value.errno)
        self.value = value
