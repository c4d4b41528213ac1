"""Which requests pass, and what the others are told."""

import pytest

from vdisk.nbd.gate import Gate, permitted_error
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, MetaContext, Session
from vdisk.nbd.wire import Command, CommandFlag, ErrorValue, TransmissionFlag

SIZE = 1 << 20
ALL = TransmissionFlag(0x1FFF) & ~TransmissionFlag.NBD_FLAG_READ_ONLY
READ_ONLY = ALL | TransmissionFlag.NBD_FLAG_READ_ONLY


def gate(
    flags: TransmissionFlag = ALL,
    style: HeaderStyle = HeaderStyle.STRUCTURED,
    sizes: BlockSizes | None = None,
) -> Gate:
    contexts = (MetaContext(3, "base:allocation"), MetaContext(5, "x-a:b"))
    return Gate(Session(ExportInfo("", SIZE, flags, "", sizes), style, contexts), 2**18)


def error(checked: tuple[ErrorValue, str] | None) -> ErrorValue | None:
    return checked and checked[0]


RANGED = [command for command in Command if command.name not in ("NBD_CMD_DISC", "NBD_CMD_FLUSH")]
WRITING = [Command.NBD_CMD_WRITE, Command.NBD_CMD_TRIM, Command.NBD_CMD_WRITE_ZEROES]


@pytest.mark.parametrize("command", RANGED)
@pytest.mark.parametrize(("offset", "length"), [(0, 1), (SIZE - 1, 1), (SIZE - 4096, 4096)])
def test_a_range_within_the_export_passes(command: Command, offset: int, length: int) -> None:
    assert gate().check(command, 0, offset, length) is None


@pytest.mark.parametrize("command", RANGED)
@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (2**64 - 1, 1), (0, SIZE + 1)]
)
def test_a_range_past_the_end(command: Command, offset: int, length: int) -> None:
    writes = command in (Command.NBD_CMD_WRITE, Command.NBD_CMD_WRITE_ZEROES)
    expected = ErrorValue.NBD_ENOSPC if writes else ErrorValue.NBD_EINVAL
    assert error(gate().check(command, 0, offset, length)) is expected


@pytest.mark.parametrize("command", RANGED)
def test_a_request_of_no_bytes(command: Command) -> None:
    assert error(gate().check(command, 0, 0, 0)) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize("command", RANGED)
def test_alignment_to_the_minimum_block_size(command: Command) -> None:
    aligned = gate(sizes=BlockSizes(512, 4096, 2**25))
    assert aligned.check(command, 0, 512, 1024) is None
    assert error(aligned.check(command, 0, 256, 512)) is ErrorValue.NBD_EINVAL
    assert error(aligned.check(command, 0, 512, 513)) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize("command", WRITING)
def test_a_read_only_export_is_not_written(command: Command) -> None:
    assert error(gate(READ_ONLY).check(command, 0, 0, 512)) is ErrorValue.NBD_EPERM
    # Even where it does not offer the command, and past its end.
    bare = TransmissionFlag.NBD_FLAG_READ_ONLY
    assert error(gate(bare).check(command, 0, SIZE, 512)) is ErrorValue.NBD_EPERM


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (Command.NBD_CMD_FLUSH, TransmissionFlag.NBD_FLAG_SEND_FLUSH),
        (Command.NBD_CMD_TRIM, TransmissionFlag.NBD_FLAG_SEND_TRIM),
        (Command.NBD_CMD_CACHE, TransmissionFlag.NBD_FLAG_SEND_CACHE),
        (Command.NBD_CMD_WRITE_ZEROES, TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES),
    ],
)
def test_a_command_must_be_offered(command: Command, flag: TransmissionFlag) -> None:
    length = 0 if command is Command.NBD_CMD_FLUSH else 512
    assert gate().check(command, 0, 0, length) is None
    assert error(gate(ALL & ~flag).check(command, 0, 0, length)) is ErrorValue.NBD_EINVAL


FLAG_OWNERS = {
    CommandFlag.NBD_CMD_FLAG_NO_HOLE: Command.NBD_CMD_WRITE_ZEROES,
    CommandFlag.NBD_CMD_FLAG_DF: Command.NBD_CMD_READ,
    CommandFlag.NBD_CMD_FLAG_REQ_ONE: Command.NBD_CMD_BLOCK_STATUS,
    CommandFlag.NBD_CMD_FLAG_FAST_ZERO: Command.NBD_CMD_WRITE_ZEROES,
}


@pytest.mark.parametrize("command", RANGED)
@pytest.mark.parametrize("flag", list(FLAG_OWNERS))
def test_each_command_flag_belongs_to_one_command(command: Command, flag: CommandFlag) -> None:
    expected = None if FLAG_OWNERS[flag] is command else ErrorValue.NBD_EINVAL
    assert error(gate().check(command, flag, 0, 512)) is expected


@pytest.mark.parametrize("command", [*RANGED, Command.NBD_CMD_FLUSH])
def test_fua_goes_with_every_command_where_it_is_offered(command: Command) -> None:
    length = 0 if command is Command.NBD_CMD_FLUSH else 512
    fua = CommandFlag.NBD_CMD_FLAG_FUA
    assert gate().check(command, fua, 0, length) is None
    without = gate(ALL & ~TransmissionFlag.NBD_FLAG_SEND_FUA)
    assert error(without.check(command, fua, 0, length)) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize(
    ("command", "flag", "offered"),
    [
        (Command.NBD_CMD_READ, CommandFlag.NBD_CMD_FLAG_DF, TransmissionFlag.NBD_FLAG_SEND_DF),
        (
            Command.NBD_CMD_WRITE_ZEROES,
            CommandFlag.NBD_CMD_FLAG_FAST_ZERO,
            TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO,
        ),
    ],
)
def test_a_flag_must_be_offered(
    command: Command, flag: CommandFlag, offered: TransmissionFlag
) -> None:
    assert error(gate(ALL & ~offered).check(command, flag, 0, 512)) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize("flag", [1 << 5, 1 << 6, 1 << 15])
def test_unknown_flags(flag: int) -> None:
    assert error(gate().check(Command.NBD_CMD_READ, flag, 0, 512)) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize("command", [8, 9, 0xFFFF, Command.NBD_CMD_DISC])
def test_unknown_commands(command: int) -> None:
    assert error(gate().check(command, 0, 0, 512)) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (512, 0)])
def test_a_flush_has_no_range(offset: int, length: int) -> None:
    assert gate().check(Command.NBD_CMD_FLUSH, 0, 0, 0) is None
    checked = gate().check(Command.NBD_CMD_FLUSH, 0, offset, length)
    assert error(checked) is ErrorValue.NBD_EINVAL


def test_only_what_moves_data_is_limited_by_the_maximum_payload() -> None:
    large = 2**18 + 1
    structured = gate()
    assert structured.check(Command.NBD_CMD_READ, 0, 0, 2**18) is None
    read = structured.check(Command.NBD_CMD_READ, 0, 0, large)
    assert error(read) is ErrorValue.NBD_EOVERFLOW
    write = structured.check(Command.NBD_CMD_WRITE, 0, 0, large)
    assert error(write) is ErrorValue.NBD_EINVAL
    simple = gate(style=HeaderStyle.SIMPLE).check(Command.NBD_CMD_READ, 0, 0, large)
    assert error(simple) is ErrorValue.NBD_EINVAL
    for command in (Command.NBD_CMD_TRIM, Command.NBD_CMD_WRITE_ZEROES, Command.NBD_CMD_CACHE):
        assert structured.check(command, 0, 0, large) is None


def test_the_smaller_of_both_payload_limits_holds() -> None:
    assert gate(sizes=BlockSizes(1, 512, 4096)).max_payload == 4096
    assert gate(sizes=BlockSizes(1, 512, 2**32 - 1)).max_payload == 2**18


def test_meta_contexts() -> None:
    assert gate().check_contexts(()) is None
    assert gate().check_contexts((5, 3)) is None
    assert error(gate().check_contexts((3, 3))) is ErrorValue.NBD_EINVAL
    assert error(gate().check_contexts((3, 4))) is ErrorValue.NBD_EINVAL
    none_selected = Gate(Session(ExportInfo("", SIZE, ALL), HeaderStyle.STRUCTURED), 2**18)
    assert error(none_selected.check_contexts(())) is ErrorValue.NBD_EINVAL


def test_errors_that_are_kept_for_other_requests() -> None:
    fast = CommandFlag.NBD_CMD_FLAG_FAST_ZERO
    zeroes, write = Command.NBD_CMD_WRITE_ZEROES, Command.NBD_CMD_WRITE
    notsup, overflow = ErrorValue.NBD_ENOTSUP, ErrorValue.NBD_EOVERFLOW
    assert permitted_error(zeroes, fast, notsup) is notsup
    assert permitted_error(zeroes, 0, notsup) is ErrorValue.NBD_EINVAL
    assert permitted_error(zeroes, fast, overflow) is ErrorValue.NBD_EINVAL
    assert permitted_error(zeroes, 0, overflow) is overflow
    assert permitted_error(write, 0, overflow) is ErrorValue.NBD_EINVAL
    assert permitted_error(Command.NBD_CMD_READ, 0, overflow) is overflow
    assert permitted_error(write, 0, ErrorValue.NBD_EIO) is ErrorValue.NBD_EIO
