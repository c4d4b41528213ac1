"""Accelerators by name; what they need is imported when they are asked for."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.accel.base import Accelerator
    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

NAMES = ("auto", "llvm", "kvm", "interp")
HOSTS = ("x86_64", "amd64")
"""Whose instructions the recompiler has the guest's floating point and vectors carried out by."""


def make(
    name: str,
    memory: GuestMemory,
    bus: Bus,
    *,
    deterministic: bool = False,
    progress: Callable[[int, int], None] | None = None,
    bits: int = 64,
) -> Accelerator:
    """The accelerator called ``name``; ``auto``: KVM where it really runs a guest, else llvm.

    ``deterministic``: it must count instructions, and nothing may depend on when code is
    compiled in the background, so that is not done.
    ``progress``: is told how much of how much is done, where there is something to prepare; that is
    what most guests need whose kernels have so many ``bits``.
    Raises :class:`UnsupportedFeatureError` where it cannot be had on this system.
    """
    if name not in NAMES:
        raise InvalidRequestError(f"accelerator {name!r}: one of {', '.join(NAMES)}")
    if name == "auto":
        from vdisk.vm.accel.kvm_probe import available

        name = "kvm" if not deterministic and available() else "llvm"
    if name == "kvm":
        from vdisk.vm.accel.kvm import KvmAccelerator

        return KvmAccelerator(memory, bus)
    for package in ("llvmlite", "iced_x86") if name == "llvm" else ("iced_x86",):
        if importlib.util.find_spec(package) is None:
            raise UnsupportedFeatureError(
                f"accelerator {name} needs the package {package}: pip install 'vdisk[vm]'"
            )
    if name == "llvm":
        if (machine := os.uname().machine) not in HOSTS:
            raise UnsupportedFeatureError(
                f"accelerator llvm needs an x86-64 host, not {machine}; there is interp"
            )
        from vdisk.vm.accel.llvm import LlvmAccelerator

        return LlvmAccelerator(memory, bus, hot=not deterministic, progress=progress, bits=bits)
    from vdisk.vm.accel.interp import InterpAccelerator

    return InterpAccelerator(memory, bus)
