"""What happens when the storage fails a request: QEMU's ``rerror`` and ``werror``."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from vdisk.emu_block.requests import Operation
from vdisk.errors import InvalidRequestError, NoSpaceError

if TYPE_CHECKING:
    from typing import Self

    from vdisk.errors import VdiskError


class OnError(enum.Enum):
    """REPORT: the guest hears of it.  IGNORE: the guest is told that all went well.  STOP: the
    request is kept, the machine stopped, and both go on with ``resume``.  ENOSPC: stop if the
    disk under the image is full, else report."""

    REPORT = "report"
    IGNORE = "ignore"
    STOP = "stop"
    ENOSPC = "enospc"


class ErrorPolicy(NamedTuple):
    """``rerror``: for reads; ``werror``: for all that changes or saves the disk.

    The defaults are QEMU's: somebody can make room while the machine stands still.
    """

    rerror: OnError = OnError.REPORT
    werror: OnError = OnError.ENOSPC

    @classmethod
    def parse(cls, rerror: str | None = None, werror: str | None = None) -> Self:
        """From the words of options; None: the default."""
        try:
            return cls(
                OnError(rerror) if rerror else OnError.REPORT,
                OnError(werror) if werror else OnError.ENOSPC,
            )
        except ValueError as error:
            words = ", ".join(choice.value for choice in OnError)
            raise InvalidRequestError(f"rerror and werror are one of {words}: {error}") from error

    def action(self, operation: Operation, error: VdiskError) -> OnError:
        """What to do about ``error``: REPORT, IGNORE or STOP."""
        wanted = self.rerror if operation is Operation.READ else self.werror
        if wanted is OnError.ENOSPC:
            return OnError.STOP if isinstance(error, NoSpaceError) else OnError.REPORT
        return wanted
