"""A compact PC: processor, memory, chips and screen around the library's block devices.

Needs the extra ``vdisk[vm]`` (llvmlite, iced-x86) unless the machine runs on KVM.
:class:`Machine` is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdisk.vm.machine import DiskSpec, Machine, MachineError, MachineTimeoutError

__all__ = ["DiskSpec", "Machine", "MachineError", "MachineTimeoutError"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vdisk.vm import machine

        return getattr(machine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
