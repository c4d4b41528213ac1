"""Exports, their size constraints, and the errors of the protocol."""

import errno

import pytest

from vdisk.errors import InvalidRequestError, VdiskError
from vdisk.nbd import errors
from vdisk.nbd.session import BlockSizes, ExportInfo, Session
from vdisk.nbd.wire import ErrorValue, TransmissionFlag


@pytest.mark.parametrize(
    "sizes", [(1, 512, 512), (1, 4096, 2**32 - 1), (512, 512, 1000), (65536, 65536, 65536)]
)
def test_sizes_a_server_may_advertise(sizes: tuple[int, int, int]) -> None:
    assert BlockSizes(*sizes).minimum == sizes[0]


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 4096, 4096),
        (3, 4096, 4096),
        (2**17, 2**17, 2**20),
        (1, 256, 4096),
        (1, 4097, 2**20),
        (4096, 512, 2**20),
        (1, 4096, 4095),
        (1, 4096, 2**32),
    ],
)
def test_sizes_no_server_may_advertise(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidRequestError):
        BlockSizes(*sizes)


@pytest.mark.parametrize(
    ("name", "size", "description", "context"),
    [
        ("x", -1, "", "a:b"),
        ("x", 2**63, "", "a:b"),
        ("x\0", 1, "", "a:b"),
        ("x", 1, "y" * 4097, "a:b"),
        ("x", 1, "", "a:\0"),
    ],
)
def test_exports_that_cannot_be_described(
    name: str, size: int, description: str, context: str
) -> None:
    with pytest.raises(InvalidRequestError):
        ExportInfo(name, size, description=description, meta_contexts=(context,))


def test_an_export_without_constraints_has_the_default_ones() -> None:
    session = Session(ExportInfo("", 2**63 - 1))
    assert session.block_sizes == BlockSizes(1, 4096, 2**25)
    assert not session.export.read_only
    assert ExportInfo("", 0, TransmissionFlag.NBD_FLAG_READ_ONLY).read_only


def test_errors_carry_what_a_device_needs() -> None:
    failed = errors.RequestError(ErrorValue.NBD_ENOSPC, "no room", offset=512)
    assert (failed.errno, failed.offset) == (errno.ENOSPC, 512)
    kinds = {
        kind.kind
        for kind in (
            errors.LocalProtocolError,
            errors.RemoteProtocolError,
            errors.NegotiationError,
            errors.RequestError,
        )
        if issubclass(kind, VdiskError)
    }
    assert len(kinds) == 4
