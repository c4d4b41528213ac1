"""The one gate every request passes, on its way out of a client and on its way into a server.

A rule for each command says which flags it takes, what the export must offer for it, and how its
range is checked; :class:`Gate` applies them to one session.  The order of the checks decides which
error a request with several faults gets: unknown command, read-only export (NBD_EPERM), command
not offered, flags, range, alignment, size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import Command, CommandFlag, ErrorValue, TransmissionFlag

if TYPE_CHECKING:
    from vdisk.nbd.session import Session

Refusal = tuple[ErrorValue, str]


class _Rule(NamedTuple):
    """What the specification says about one command.

    ``needs``: the transmission flag that offers it.  ``flags``: each command flag it takes, with
    the transmission flag that offers that.  ``beyond_end``: the error for a range past the end.
    ``moves_data``: its length is limited by the maximum payload.
    """

    needs: TransmissionFlag = TransmissionFlag(0)
    flags: tuple[tuple[CommandFlag, TransmissionFlag], ...] = ()
    writes: bool = False
    ranged: bool = True
    beyond_end: ErrorValue = ErrorValue.NBD_EINVAL
    moves_data: bool = False


RULES: Final = {
    Command.NBD_CMD_READ: _Rule(
        flags=((CommandFlag.NBD_CMD_FLAG_DF, TransmissionFlag.NBD_FLAG_SEND_DF),),
        moves_data=True,
    ),
    Command.NBD_CMD_WRITE: _Rule(
        writes=True,
        beyond_end=ErrorValue.NBD_ENOSPC,
        moves_data=True,
    ),
    Command.NBD_CMD_FLUSH: _Rule(needs=TransmissionFlag.NBD_FLAG_SEND_FLUSH, ranged=False),
    Command.NBD_CMD_TRIM: _Rule(needs=TransmissionFlag.NBD_FLAG_SEND_TRIM, writes=True),
    Command.NBD_CMD_CACHE: _Rule(needs=TransmissionFlag.NBD_FLAG_SEND_CACHE),
    Command.NBD_CMD_WRITE_ZEROES: _Rule(
        needs=TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES,
        flags=(
            (
                CommandFlag.NBD_CMD_FLAG_NO_HOLE,
                TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES,
            ),
            (
                CommandFlag.NBD_CMD_FLAG_FAST_ZERO,
                TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO,
            ),
        ),
        writes=True,
        beyond_end=ErrorValue.NBD_ENOSPC,
    ),
    Command.NBD_CMD_BLOCK_STATUS: _Rule(
        flags=((CommandFlag.NBD_CMD_FLAG_REQ_ONE, TransmissionFlag(0)),),
    ),
}
"""Every command with a reply.  NBD_CMD_FLAG_FUA goes with all of them (NBD_FLAG_SEND_FUA), and
NBD_CMD_FLAG_PAYLOAD_LEN belongs to the layout of the request, which is checked elsewhere."""


class Gate:
    """The rules as they apply to one session; ``max_payload`` is in bytes."""

    __slots__ = ("_allowed", "_session", "_unaligned", "max_payload", "size")

    def __init__(self, session: Session, max_payload: int) -> None:
        self._session = session
        self.size = session.export.size
        self.max_payload = min(session.block_sizes.maximum, max_payload)
        self._unaligned = session.block_sizes.minimum - 1
        self._allowed = {
            int(command): _allowed_flags(rule, session.export.flags)
            for command, rule in RULES.items()
            if session.export.flags & rule.needs == rule.needs
        }

    def check(self, command: int, flags: int, offset: int, length: int) -> Refusal | None:
        """Why a request is refused, or ``None``: then it lies within the export and is offered.

        ``flags`` without NBD_CMD_FLAG_PAYLOAD_LEN; ``length`` is the effect length.
        """
        rule = _RULES_BY_NUMBER.get(command)
        if rule is None:
            return ErrorValue.NBD_EINVAL, f"unknown command {command}"
        if rule.writes and self._session.export.read_only:
            return ErrorValue.NBD_EPERM, "the export is read-only"
        return self._check_flags(command, flags) or self._check_range(rule, offset, length)

    def _check_flags(self, command: int, flags: int) -> Refusal | None:
        allowed = self._allowed.get(command)
        if allowed is None:
            return ErrorValue.NBD_EINVAL, f"the export does not offer {Command(command).name}"
        if flags & ~allowed:
            return ErrorValue.NBD_EINVAL, f"command flags {flags & ~allowed:#x} not allowed here"
        return None

    def _check_range(self, rule: _Rule, offset: int, length: int) -> Refusal | None:
        if not rule.ranged:
            reserved = "offset and length are reserved, and must be zero"
            return (ErrorValue.NBD_EINVAL, reserved) if offset or length else None
        if not length:
            return ErrorValue.NBD_EINVAL, "a request of no bytes"
        if offset + length > self.size:
            return rule.beyond_end, f"{offset} + {length} is past the end, {self.size}"
        if (offset | length) & self._unaligned:
            return ErrorValue.NBD_EINVAL, f"not a multiple of {self._unaligned + 1}"
        if rule.moves_data and length > self.max_payload:
            return self._too_large(rule), f"{length} bytes, the maximum is {self.max_payload}"
        return None

    def _too_large(self, rule: _Rule) -> ErrorValue:
        """NBD_EOVERFLOW is for reads that structured replies could have split."""
        if rule.writes or self._session.headers is HeaderStyle.SIMPLE:
            return ErrorValue.NBD_EINVAL
        return ErrorValue.NBD_EOVERFLOW

    def check_contexts(self, context_ids: tuple[int, ...]) -> Refusal | None:
        """Why a block status request for these contexts (none: for all) is refused."""
        known = {context.id for context in self._session.meta_contexts}
        if not known:
            return ErrorValue.NBD_EINVAL, "no meta context was selected"
        if len(set(context_ids)) != len(context_ids):
            return ErrorValue.NBD_EINVAL, "a meta context id appears twice"
        if not known.issuperset(context_ids):
            return ErrorValue.NBD_EINVAL, "an unknown meta context id"
        return None


_RULES_BY_NUMBER: Final = {int(command): rule for command, rule in RULES.items()}


def _allowed_flags(rule: _Rule, offered: TransmissionFlag) -> int:
    """The command flags that go with a command, given the export's transmission flags."""
    candidates = (
        *rule.flags,
        (CommandFlag.NBD_CMD_FLAG_FUA, TransmissionFlag.NBD_FLAG_SEND_FUA),
    )
    return sum(int(flag) for flag, needs in candidates if needs in offered)


def permitted_error(command: int, flags: int, error: ErrorValue) -> ErrorValue:
    """*error*, or NBD_EINVAL where the specification keeps it for other requests.

    NBD_ENOTSUP answers NBD_CMD_FLAG_FAST_ZERO alone.  NBD_EOVERFLOW answers reads and commands
    without payload that are too large, except fast zeroing.
    """
    fast_zero = flags & CommandFlag.NBD_CMD_FLAG_FAST_ZERO
    if error is ErrorValue.NBD_ENOTSUP and not fast_zero:
        return ErrorValue.NBD_EINVAL
    if error is ErrorValue.NBD_EOVERFLOW and (command == Command.NBD_CMD_WRITE or fast_zero):
        return ErrorValue.NBD_EINVAL
    return error
