"""The errors: what they say, and that programs can tell them apart."""

from __future__ import annotations

import errno
import inspect

import pytest

from vdisk import errors
from vdisk.errors import DeviceError, NoSpaceError, NotFoundError, VdiskError, from_os_error

FAMILY = [
    kind
    for _name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, VdiskError)
]


def test_every_kind_is_its_own() -> None:
    kinds = [error.kind for error in FAMILY]
    assert len(set(kinds)) == len(kinds) > 10


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_has_an_errno_that_the_system_knows(kind: type[VdiskError]) -> None:
    assert kind("message").errno in errno.errorcode


def test_the_text_names_the_place() -> None:
    assert str(VdiskError("is bad")) == "is bad"
    assert str(VdiskError("is bad", path="a.img")) == "a.img: is bad"
    assert str(VdiskError("is bad", path="a.img", offset=512)) == "a.img, offset 0x200: is bad"
    assert str(VdiskError("is bad", offset=0)) == "offset 0x0: is bad"


def test_what_could_not_be_opened_is_said_in_the_words_of_qemu() -> None:
    error = VdiskError("is bad", path="a.img", operation="open")
    assert str(error) == "Could not open 'a.img': is bad"
    error = VdiskError("is bad", path="a.img", offset=512, operation="open")
    assert str(error) == "Could not open 'a.img': is bad (at 0x200)"
    assert error.reason == "is bad (at 0x200)"
    absent = from_os_error(OSError(errno.ENOENT, "No such file"), path="a.img", operation="open")
    assert str(absent) == "Could not open 'a.img': No such file"
    assert str(VdiskError("is bad", operation="open")) == "is bad"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFoundError),
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EFBIG, NoSpaceError),
        (errno.EEXIST, errors.AlreadyExistsError),
        (errno.EIO, DeviceError),
        (errno.EACCES, DeviceError),
    ],
)
def test_system_errors_keep_their_number(number: int, kind: type[VdiskError]) -> None:
    error = from_os_error(OSError(number, "reason"), path="a.img", operation="read", offset=8)
    assert type(error) is kind
    assert error.errno == number
    assert str(error) == "a.img, offset 0x8: cannot read: reason"


def test_a_system_error_without_a_number_is_an_input_output_error() -> None:
    assert from_os_error(OSError("odd"), path="a", operation="open").errno == errno.EIO
