"""Two devices that must hold the same: what is done to one is done to both.

::

    write  ---> raw, which is right by definition
           '--> test, the image under test
    read   ---> both, compared: a byte that differs, or an error of only one, is an error here
                that names the place

``blkverify:RAW:TEST``, as in QEMU, which ends the program where this raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.block import BlockDevice, close_all
from vdisk.errors import DeviceError, InvalidRequestError, VdiskError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.options import OptionBag


class Verify(BlockDevice):
    """The device ``test``, held against ``raw`` in everything; both are closed with it."""

    def __init__(self, raw: BlockDevice, test: BlockDevice) -> None:
        if raw.size != test.size:
            raise InvalidRequestError(
                f"{raw.name} holds {raw.size} bytes and {test.name} {test.size}: "
                "they cannot be the same",
                path=test.name,
            )
        self.raw = raw
        self.test = test
        self.name = test.name
        self.readonly = raw.readonly or test.readonly

    @property
    def size(self) -> int:
        return self.test.size

    def _read_into(self, offset: int, view: memoryview) -> None:
        expected = memoryview(bytearray(len(view)))
        self._both(
            "read",
            offset,
            lambda: self.raw.read_into(offset, expected),
            lambda: self.test.read_into(offset, view),
        )
        if bytes(view) != expected:
            at = next(index for index, byte in enumerate(view) if byte != expected[index])
            raise DeviceError(
                f"differs from {self.raw.name}: {view[at]:#04x} where {expected[at]:#04x} "
                f"should be (in a read of {len(view)} bytes at {offset:#x})",
                path=self.name,
                offset=offset + at,
                operation="read",
            )

    def _write(self, offset: int, view: memoryview) -> None:
        self._both(
            "write",
            offset,
            lambda: self.raw.write(offset, view),
            lambda: self.test.write(offset, view),
        )

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._both(
            "write zeroes",
            offset,
            lambda: self.raw.write_zeroes(offset, length, unmap=unmap),
            lambda: self.test.write_zeroes(offset, length, unmap=unmap),
        )

    def _flush(self) -> None:
        self._both("flush", None, self.raw.flush, self.test.flush)

    def _truncate(self, size: int) -> None:
        self._both(
            "resize", None, lambda: self.raw.truncate(size), lambda: self.test.truncate(size)
        )

    def _both(
        self,
        operation: str,
        offset: int | None,
        on_raw: Callable[[], None],
        on_test: Callable[[], None],
    ) -> None:
        """Do the same to both; an error of both is that error, of one an error of its own."""
        expected, found = _error_of(on_raw), _error_of(on_test)
        if (expected is None) == (found is None):
            if found is not None:
                raise found
            return
        failed, other = (self.test, self.raw) if expected is None else (self.raw, self.test)
        raise DeviceError(
            f"{operation} failed on {failed.name} but not on {other.name}: {found or expected}",
            path=self.name,
            offset=offset,
            operation=operation,
        ) from (found or expected)

    def _close(self) -> None:
        close_all(self.raw, self.test)


def _error_of(call: Callable[[], None]) -> VdiskError | None:
    try:
        call()
    except VdiskError as error:
        return error
    return None


class VerifyDriver:
    """``{"driver": "blkverify", "raw": …, "test": …}``."""

    children = ("raw", "test")
    images = frozenset({"test"})

    def parse_name(self, name: str) -> dict[str, Any]:
        raw, colon, test = name.removeprefix("blkverify:").partition(":")
        if not (raw and colon and test):
            raise InvalidRequestError(f"{name!r} is not of the form blkverify:RAW:TEST")
        return {"driver": "blkverify", "raw": {"filename": raw}, "test": {"filename": test}}

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> Verify:
        try:
            options.finish()
            return Verify(children["raw"], children["test"])
        except BaseException:
            close_all(*children.values())
            raise


FILTER = VerifyDriver()
