"""The engines that CPU tests run on, each forced; a test takes them as a parameter::

@pytest.fixture(params=ENGINES, ids=str)
def engine(request):
    request.param.require()
    ...
    accelerator = request.param.make(memory, bus)
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from vdisk.vm.cpu.compiler import Level

if TYPE_CHECKING:
    from vdisk.vm.accel.base import Accelerator
    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory


@dataclass(frozen=True)
class Engine:
    """An accelerator and how it is forced to one of its ways to execute.

    ``share``: how many of the cases a test has time for on it, 1.0 all.
    """

    name: str
    module: str
    class_name: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    share: float = 1.0

    def __str__(self) -> str:
        return self.name

    def require(self) -> None:
        """Skip the running test if this host cannot run the engine."""
        if self.name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            pytest.skip("/dev/kvm cannot be opened here")
        if importlib.util.find_spec(self.module) is None:
            pytest.skip(f"{self.module} is not there")
        kind = getattr(importlib.import_module(self.module), self.class_name)
        if not set(self.options) <= set(inspect.signature(kind).parameters):
            pytest.skip(f"{self.class_name} has no options {', '.join(self.options)}")

    def make(self, memory: GuestMemory, bus: Bus) -> Accelerator:
        """A new accelerator."""
        kind = getattr(importlib.import_module(self.module), self.class_name)
        made: Accelerator = kind(memory, bus, **self.options)
        return made


ENGINES = (
    Engine("interp", "vdisk.vm.accel.interp", "InterpAccelerator"),
    Engine("llvm-threaded", "vdisk.vm.accel.llvm", "LlvmAccelerator", {"hot": False}),
    Engine("llvm-hot", "vdisk.vm.accel.llvm", "LlvmAccelerator", {"eager": True}, share=0.05),
    Engine(
        *("llvm-quick", "vdisk.vm.accel.llvm", "LlvmAccelerator"),
        {"eager": True, "level": Level.QUICK},
        share=0.05,
    ),
    Engine("kvm", "vdisk.vm.accel.kvm", "KvmAccelerator"),
)
