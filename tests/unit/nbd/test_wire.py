"""Numbers and strings of the protocol."""

import errno

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.nbd import wire
from vdisk.nbd.wire import ErrorValue


def test_sizes_of_the_messages_are_those_of_the_specification() -> None:
    assert wire.GREETING.size == 18
    assert wire.GREETING_MAGICS.size + wire.OLDSTYLE_EXPORT.size == 152
    assert wire.OPTION_HEADER.size == 16
    assert wire.OPTION_REPLY_HEADER.size == 20
    assert wire.EXPORT_NAME_REPLY.size + wire.EXPORT_NAME_ZEROES == 134
    assert wire.INFO_EXPORT.size == 12
    assert wire.INFO_BLOCK_SIZE.size == 14
    assert wire.REQUEST.size == 28
    assert wire.EXTENDED_REQUEST.size == 32
    assert wire.SIMPLE_REPLY.size == 16
    assert wire.STRUCTURED_REPLY.size == 20
    assert wire.EXTENDED_REPLY.size == 32


def test_the_magics_spell_what_they_should() -> None:
    assert wire.NBDMAGIC.to_bytes(8, "big") == b"NBDMAGIC"
    assert wire.IHAVEOPT.to_bytes(8, "big") == b"IHAVEOPT"


@pytest.mark.parametrize("value", list(ErrorValue))
def test_every_error_value_survives_the_way_through_errno(value: ErrorValue) -> None:
    assert ErrorValue.from_errno(value.errno) is value
    assert ErrorValue.from_wire(int(value)) is value


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (errno.EACCES, ErrorValue.NBD_EPERM),
        (errno.EROFS, ErrorValue.NBD_EPERM),
        (errno.EDQUOT, ErrorValue.NBD_ENOSPC),
        (errno.EFBIG, ErrorValue.NBD_ENOSPC),
        (errno.EILSEQ, ErrorValue.NBD_EIO),
        (0, ErrorValue.NBD_EIO),
    ],
)
def test_errno_numbers_without_an_own_value(number: int, value: ErrorValue) -> None:
    assert ErrorValue.from_errno(number) is value


def test_an_unexpected_error_value_counts_as_einval() -> None:
    assert ErrorValue.from_wire(4711) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize("text", ["nul\0inside", "x" * 4097, "lone \ud800 surrogate"])
def test_strings_that_must_not_be_sent(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        wire.encode_string(text)


@pytest.mark.parametrize("data", [b"\0", b"x" * 4097, b"\xff\xfe"])
def test_strings_that_must_not_be_received(data: bytes) -> None:
    with pytest.raises(ValueError):
        wire.decode_string(data)


def test_the_longest_string() -> None:
    assert wire.decode_string(wire.encode_string("x" * 4096)) == "x" * 4096


def test_a_message_is_cut_between_characters() -> None:
    message = wire.encode_message("\0" + "x" * 4095 + "ä")
    assert message == b"x" * 4095
