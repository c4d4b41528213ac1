"""The parts of :mod:`vdisk.vm.bios`: one file for each service or table.

The ROM (``rom.py``) is a few hundred bytes of real-mode code.  Each entry point of it *traps*: it
writes to an I/O port, and the service in Python runs in the middle of that instruction, with the
registers and the memory of the calling processor in its hands (``call.py``).  What must wait waits
in the ROM, with interrupts on::

    guest          ROM                         Python
    int 16h  --->  out TRAP_PORT, al   --->    keyboard.service(call)
                   jc   wait                     no key: live carry := 1
                   iret                          a key: AX := key, live carry := 0
             wait: sti / hlt / cli
                   jmp  (again)

Everything the services remember lies in the guest's memory (the BIOS data area at 400h and its
extension, ``layout.py``), as that of any BIOS: a saved machine needs nothing else.
"""
