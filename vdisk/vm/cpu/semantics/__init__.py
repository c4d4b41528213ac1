"""What each instruction does, written once for all engines; a file a group of the manual."""


def load_all() -> None:
    """Register every semantic function and every lowering."""
    from vdisk.vm.cpu import lowering, lowering_sse, lowering_x87
    from vdisk.vm.cpu.semantics import (
        bits,
        contexts,
        control,
        integer,
        machine,
        privileged,
        shifts,
        sse,
        strings,
        x87,
    )

    del contexts, lowering_sse, lowering_x87, sse, x87
    del lowering, bits, control, integer, machine, privileged, shifts, strings
