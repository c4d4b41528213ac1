"""Every register of a processor, as a state that can be saved."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from vdisk.errors import CorruptImageError
from vdisk.vm.accel.base import DescriptorTable, FpuState, Registers, Segment, SystemRegisters

if TYPE_CHECKING:
    from vdisk.vm.accel.base import Vcpu
    from vdisk.vm.devices.base import State


def save_vcpu(vcpu: Vcpu) -> State:
    """All register sets of a vCPU that stands still."""
    return {
        "registers": asdict(vcpu.get_registers()),
        "system": asdict(vcpu.get_system_registers()),
        "fpu": asdict(vcpu.get_fpu()),
        "msrs": [[index, value] for index, value in sorted(vcpu.get_msrs().items())],
        "extra": vcpu.get_extra(),
    }


def load_vcpu(vcpu: Vcpu, state: State) -> None:
    """Give a vCPU the registers that were saved; raises :class:`CorruptImageError`."""
    try:
        system = _system(state["system"])
        registers = _filled(Registers, state["registers"])
        fpu = _filled(FpuState, state["fpu"])
        msrs = {_number(index): _number(value) for index, value in state["msrs"]}
        extra = state["extra"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptImageError(f"the saved state of processor {vcpu.index}: {error}") from error
    vcpu.set_system_registers(system)
    vcpu.set_registers(registers)
    vcpu.set_msrs(msrs)
    vcpu.set_fpu(fpu)
    vcpu.set_extra(extra)


def _system(state: State) -> SystemRegisters:
    system = SystemRegisters()
    for field in fields(SystemRegisters):
        old, new = getattr(system, field.name), state[field.name]
        if isinstance(old, Segment | DescriptorTable):
            setattr(system, field.name, _filled(type(old), new))
        else:
            setattr(system, field.name, _like(old, new))
    return system


def _filled(kind: type[Any], state: State) -> Any:
    """An instance of one of the register sets from its dictionary."""
    value = kind()
    for field in fields(kind):
        setattr(value, field.name, _like(getattr(value, field.name), state[field.name]))
    return value


def _like(old: object, new: Any) -> Any:
    """``new``, which has to be a number, or a list of as many numbers as ``old`` has."""
    if isinstance(old, list):
        if not isinstance(new, list) or len(new) != len(old):
            raise ValueError(f"{len(old)} registers expected")
        return [_number(item) for item in new]
    return _number(new)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 128:
        raise ValueError(f"{value!r} is no register")
    return value
