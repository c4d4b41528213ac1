"""What each instruction does, written once for all engines; a file a group of the manual."""


def load_all() -> None:
    """Register every semantic function and every lowering."""
    from vdisk.vm.cpu import lowering_control, lowering_integer, lowering_sse, lowering_x87
    from vdisk.vm.cpu.semantics import (
        bits,
        contexts,
        control,
        integer,
        machine,
        mmx,
        privileged,
        shifts,
        sse,
        strings,
        x87,
        x87_arithmetic,
        x87_control,
    )

    del lowering_control, lowering_integer, lowering_sse, lowering_x87
    del contexts, mmx, sse, x87, x87_arithmetic, x87_control
    del bits, control, integer, machine, privileged, shifts, strings
