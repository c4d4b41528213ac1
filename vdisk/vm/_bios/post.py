"""Power-on self test: from reset to the boot sector.

The chips are brought into the state in which PC operating systems expect them (IBM AT technical
reference; 82371SB data sheet), in this order: shadow RAM, interrupt vectors and data area,
interrupt controllers and timer, RTC, keyboard controller, PCI, screen, ports, drives, tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout, pci
from vdisk.vm._bios.hardware import PIC1, PIC2
from vdisk.vm._bios.rom import ROM_BASE, ROM_SEGMENT, VECTORS

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.services import Services

SHUTDOWN_STATUS, RESUMING = 0x0F, 0xFE  # in CMOS memory
MIB = 1 << 20
VECTOR_COUNT = 256
UNUSED_VECTORS = range(0x60, 0x68)  # for programs: zero says free
MASTER_BASE, SLAVE_BASE, CASCADE = 0x08, 0x70, 2
MASTER_MASK, SLAVE_MASK = 0xF8, 0xFF  # timer, keyboard and the cascade get through
PIT_CONTROL, PIT_0, PIT_1, PIT_2 = 0x43, 0x40, 0x41, 0x42
PORT_92, A20_OPEN = 0x92, 0x02
HOST_BRIDGE = 0x12378086  # 82441FX
PM_FUNCTION = 0x71138086  # 82371AB power management
PM_BASE, SMBUS_BASE = 0x0600, 0x0700
PM_BASE_REGISTER, PM_ENABLE_REGISTER, SMBUS_REGISTER, SMBUS_ENABLE = 0x40, 0x80, 0x90, 0xD2
SCI_LINE = 9
IDE_TIMING, IDE_DECODES = 0x40, 0x80008000
SHADOW_BIOS, SHADOW_ALL, BIOS_READ_ONLY = 0x30, 0x33, 0x10
EQUIPMENT_FPU, EQUIPMENT_MOUSE = 0x0002, 0x0004
OPTION_ROMS = range(0xC8000, 0xF0000, 0x800)
OPTION_ROM_BLOCK = 512


class Post:
    """What runs once after each reset."""

    def __init__(self, services: Services) -> None:
        self.all = services
        self.hw = services.hw

    def run(self, call: Call) -> None:
        """The whole of it; the ROM goes on with option ROMs and int 19h, or where one resumes."""
        resuming = self.hw.cmos(SHUTDOWN_STATUS) == RESUMING
        vector = self.all.tables.waking_vector() if resuming else 0
        if 0 < vector < MIB:
            self.resume(call, vector)
            return
        self.shadow()
        self.hw.outb(PORT_92, A20_OPEN)
        self.vectors()
        self.data_area()
        self.interrupt_controllers()
        self.timer()
        self.all.time.initialize()
        self.all.system.mouse.controller.initialize()
        self.all.system.mouse.initialize()
        self.all.keyboard.initialize()
        pci.Assigner(self.hw).run()
        self.chipset()
        self.all.video.initialize()
        self.equipment()
        self.all.disk.initialize()
        self.all.tables.place()
        self.lock()
        self.all.boot.banner()

    def resume(self, call: Call, vector: int) -> None:
        """Behind S3: chips as firmware leaves them; memory belongs to the system, which goes on
        in real mode with the paragraph of its vector in CS (ACPI 2.0, 5.2.9)."""
        self.hw.set_cmos(SHUTDOWN_STATUS, 0)
        self.hw.outb(PORT_92, A20_OPEN)
        self.interrupt_controllers()
        self.timer()
        self.all.system.mouse.controller.initialize()
        pci.Assigner(self.hw).run()
        self.chipset()
        self.all.video.initialize()
        self.hw.ebda.set_dword(layout.OPTION_ROM, (vector >> 4) << 16 | vector & 0xF)
        call.ds = self.hw.bda.word(layout.EBDA_SEGMENT)
        call.wait = True

    # -- memory ------------------------------------------------------------------------------

    def _host_bridge(self) -> pci.Function | None:
        bridge = pci.Function(self.hw.ports, 0, 0, 0)
        return bridge if bridge.read(0, 4) == HOST_BRIDGE else None

    def shadow(self) -> None:
        """RAM from C0000 to FFFFF, with the ROM's copy in it."""
        bridge = self._host_bridge()
        if bridge is None:
            return
        bridge.write(pci.PAM, 1, SHADOW_BIOS)
        for register in range(pci.PAM + 1, pci.PAM + 7):
            bridge.write(register, 1, SHADOW_ALL)
        self.hw.space.write(ROM_BASE, self.hw.rom.image)

    def lock(self) -> None:
        """The BIOS's own segment can only be read from now on."""
        bridge = self._host_bridge()
        if bridge is not None:
            bridge.write(pci.PAM, 1, BIOS_READ_ONLY)

    def vectors(self) -> None:
        """The interrupt vector table."""
        labels = self.hw.rom.labels
        table = bytearray()
        for number in range(VECTOR_COUNT):
            offset = 0 if number in UNUSED_VECTORS else labels[VECTORS.get(number, "nothing")]
            segment = 0 if number in UNUSED_VECTORS else ROM_SEGMENT
            table += offset.to_bytes(2, "little") + segment.to_bytes(2, "little")
        for number in (0x1D, 0x41, 0x46):  # pointers to tables that may be absent
            table[number * 4 : number * 4 + 4] = bytes(4)
        self.hw.space.write(0, table)

    def data_area(self) -> None:
        """BDA and EBDA; the reset flag says whether this was a warm start and stays."""
        hw, bda = self.hw, self.hw.bda
        flag = bda.word(layout.RESET_FLAG)
        hw.space.write(layout.BDA, bytes(0x100))
        bda.set_word(layout.RESET_FLAG, flag)
        bda.set_word(layout.EBDA_SEGMENT, layout.EBDA >> 4)
        bda.set_word(layout.MEMORY_KIB, layout.CONVENTIONAL_KIB)
        bda.set_byte(layout.PRINT_SCREEN_STATUS, 0)
        hw.space.write(layout.EBDA, bytes([layout.EBDA_KIB]) + bytes(1023))

    # -- chips -------------------------------------------------------------------------------

    def interrupt_controllers(self) -> None:
        """8259s: IRQ 0-7 at 08h, 8-15 at 70h."""
        out = self.hw.outb
        for port, base, cascade in (
            (PIC1, MASTER_BASE, 1 << CASCADE),
            (PIC2, SLAVE_BASE, CASCADE),
        ):
            out(port, 0x11)  # ICW1: edges, a cascade, ICW4 follows
            out(port + 1, base)
            out(port + 1, cascade)
            out(port + 1, 0x01)  # 8086 mode
        out(PIC1 + 1, MASTER_MASK)
        out(PIC2 + 1, SLAVE_MASK)

    def timer(self) -> None:
        """8254: 18.2 Hz, refresh (which port 61h shows), and the speaker's tone."""
        out = self.hw.outb
        for control, port, count in ((0x36, PIT_0, 0), (0x54, PIT_1, 18), (0xB6, PIT_2, 1331)):
            out(PIT_CONTROL, control)
            out(port, count & 0xFF)
            if control & 0x30 == 0x30:
                out(port, count >> 8)

    def chipset(self) -> None:
        """IDE channels answer, power management has its registers, the SCI is level-triggered."""
        for function in pci.functions(self.hw.ports):
            if function.class_code == pci.IDE and function.read(0, 2) == 0x8086:
                function.write(IDE_TIMING, 4, IDE_DECODES)
            elif function.read(0, 4) == PM_FUNCTION:
                function.write(PM_BASE_REGISTER, 4, PM_BASE | 1)
                function.write(PM_ENABLE_REGISTER, 1, 1)
                function.write(SMBUS_REGISTER, 4, SMBUS_BASE | 1)
                function.write(SMBUS_ENABLE, 1, 9)
                function.write(pci.INTERRUPT_LINE, 1, SCI_LINE)
                high = self.hw.inb(pci.EDGE_LEVEL + 1) | 1 << SCI_LINE - 8
                self.hw.outb(pci.EDGE_LEVEL + 1, high)

    def equipment(self) -> None:
        """The word of int 11h."""
        bda, floppies = self.hw.bda, len(self.hw.drives.floppies)
        word = bda.word(layout.EQUIPMENT) | EQUIPMENT_FPU | EQUIPMENT_MOUSE
        if floppies:
            word |= 0x0001 | min(floppies - 1, 3) << 6
        word |= self.all.serial.initialize() << 9
        word |= self.all.printer.initialize() << 14
        bda.set_word(layout.EQUIPMENT, word)

    # -- option ROMs -------------------------------------------------------------------------

    def option_rom(self, call: Call) -> None:
        """Find the next option ROM; the ROM calls its entry, three bytes behind its start."""
        ebda = self.hw.ebda
        start = max(ebda.word(layout.OPTION_ROM_NEXT) << 4, OPTION_ROMS.start)
        for address in range(start, OPTION_ROMS.stop, OPTION_ROMS.step):
            length = self._option_rom_length(address)
            if length:
                ebda.set_word(layout.OPTION_ROM_NEXT, address + length >> 4)
                ebda.set_dword(layout.OPTION_ROM, (address >> 4) << 16 | 3)
                call.ds = self.hw.bda.word(layout.EBDA_SEGMENT)
                call.wait = True
                return
        call.wait = False

    def _option_rom_length(self, address: int) -> int:
        """Bytes of a valid option ROM at ``address``, rounded up to where one may follow."""
        head = self.hw.space.read(address, 3)
        length = head[2] * OPTION_ROM_BLOCK
        if head[:2] != b"\x55\xaa" or not length or address + length > OPTION_ROMS.stop:
            return 0
        if sum(self.hw.space.read(address, length)) & 0xFF:
            return 0
        return -(-length // OPTION_ROMS.step) * OPTION_ROMS.step
