"""What each instruction does, written once for all engines; a file a group of the manual."""


def load_all() -> None:
    """Register every semantic function and every lowering."""
    from vdisk.vm.cpu import lowering, lowering_sse
    from vdisk.vm.cpu.semantics import (
        bits,
        control,
        integer,
        machine,
        privileged,
        shifts,
        sse,
        strings,
    )

    del lowering_sse, sse
    del lowering, bits, control, integer, machine, privileged, shifts, strings
