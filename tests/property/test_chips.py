"""Laws of every chip: any access has an answer, and a saved chip goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.errors import CorruptImageError
from vdisk.stores.memory import MemoryStore
from vdisk.vm.bus import Bus
from vdisk.vm.clock import SECOND, VirtualClock
from vdisk.vm.devices.acpi_pm import AcpiPm
from vdisk.vm.devices.base import Device
from vdisk.vm.devices.dma import Dma
from vdisk.vm.devices.fdc import Fdc
from vdisk.vm.devices.fw_cfg import FwCfg
from vdisk.vm.devices.hpet import BASE as HPET
from vdisk.vm.devices.hpet import Hpet, IrqGate
from vdisk.vm.devices.i440fx import I440fx
from vdisk.vm.devices.ioapic import BASE as IOAPIC
from vdisk.vm.devices.ioapic import IoApic
from vdisk.vm.devices.isa_irqs import IsaIrqs
from vdisk.vm.devices.pci import PciBus
from vdisk.vm.devices.pic import PicPair
from vdisk.vm.devices.piix3 import Piix3
from vdisk.vm.devices.pit import Pit
from vdisk.vm.devices.port92 import Port92
from vdisk.vm.devices.ps2 import KeyboardController
from vdisk.vm.devices.ps2_keyboard import Keyboard
from vdisk.vm.devices.ps2_mouse import Mouse
from vdisk.vm.devices.rtc import Rtc
from vdisk.vm.devices.serial import Uart
from vdisk.vm.devices.speaker import Speaker
from vdisk.vm.devices.vga import Vga
from vdisk.vm.memory import GuestMemory, PageKind


class Board:
    """All chips, wired as in a machine; what leaves it is written down."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.memory = GuestMemory(1 << 21)
        self.left: list[object] = []
        say = self.left.append
        self.pci = PciBus(self.bus)
        self.pci.send_msi = lambda address, data: say((address, data))
        self.pic = PicPair(self.bus)
        self.ioapic = IoApic(self.bus, self.pci.send_msi)
        irqs = self.irqs = IsaIrqs(self.pic.set_irq, self.ioapic.set_irq)
        self.bridge = I440fx(self.bus, self.memory)
        self.piix3 = Piix3(self.bus, self.pci, irqs, lambda: say("reset"))
        self.pm = AcpiPm(
            self.bus, self.clock, irqs.line(9), lambda: say("off"), lambda: say("suspend")
        )
        self.vga = Vga(self.bus, self.memory, self.clock, memory_size=1 << 20)
        for device, slot, function in (
            (self.bridge, 0, 0), (self.piix3, 1, 0), (self.pm, 1, 3), (self.vga, 2, 0)
        ):  # fmt: skip
            self.pci.add(device, slot, function)
        gates = IrqGate(irqs.line(0)), IrqGate(irqs.line(8))
        self.pit = Pit(self.bus, self.clock, gates[0].input)
        self.rtc = Rtc(self.bus, self.clock, gates[1].input, 1_700_000_000)
        legacy = irqs.line(0), irqs.line(8)
        self.hpet = Hpet(self.bus, self.clock, self.ioapic.set_pin, legacy, gates)
        self.speaker = Speaker(self.bus, self.clock, self.pit)
        self.dma = Dma(self.bus, self.memory)
        diskette = EmuBlockDevice(MemoryStore(bytes(1440 << 10)), removable=True, threads=0)
        self.fdc = Fdc(self.bus, self.dma, irqs.line(6), [diskette])
        self.keyboard, self.mouse = Keyboard(), Mouse()
        self.controller = KeyboardController(
            self.bus, self.clock, self.keyboard, self.mouse,
            irq1=irqs.line(1), irq12=irqs.line(12), set_a20=say, reset_processor=lambda: say("cpu"),
        )  # fmt: skip
        self.port92 = Port92(self.bus, say, lambda: say("cpu"))
        self.uart = Uart(self.bus, self.clock, irqs.line(4), 0x3F8, Written(say))
        self.fw_cfg = FwCfg(self.bus, self.memory)
        self.devices: list[Device] = [
            self.pci, self.bridge, self.piix3, self.pm, self.vga, self.pit, self.rtc, self.hpet,
            self.speaker, self.keyboard, self.mouse, self.controller, self.port92, self.uart,
            self.dma, self.fdc, self.fw_cfg, self.ioapic, self.pic,
        ]  # fmt: skip
        for device in self.devices:
            device.reset()

    def save(self) -> list[object]:
        return [device.save_state() for device in self.devices]

    def load(self, saved: list[object]) -> None:
        for device, state in sorted(
            zip(self.devices, saved, strict=True), key=lambda pair: pair[0].load_order
        ):
            device.load_state(state)


class Written(NamedTuple):
    """A stream whose bytes leave the board."""

    say: Callable[[object], None]

    def write(self, data: bytes) -> None:
        self.say(data)


PORTS = (
    *(0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71),
    *(0x92, 0xB2, 0xB3, *range(0x3C0, 0x3DB), *range(0x3F8, 0x400), 0x1CE, 0x1CF, 0x1D0),
    *(*range(0x10), 0xC0, 0xC2, 0xD4, 0xD6, 0x81, 0x82, 0x8B, 0x3F2, 0x3F4, 0x3F5, 0x3F7),
    *(0x510, 0x511, 0x514, 0x518, 0xCF8, 0xCF9, 0xCFC, 0xCFD, 0xCFE, 0xCFF, *range(0x600, 0x610)),
)
PLACES = (
    *(HPET + place for place in (0x10, 0x20, 0xF0, 0x100, 0x108, 0x128)),
    IOAPIC,
    IOAPIC + 0x10,
    IOAPIC + 0x40,
    0xA0000,
    0xA0001,
    0xB8000,
    0xB8003,
    0xBFFFF,
)
CONFIG = (0x04, 0x10, 0x40, 0x58, 0x59, 0x5C, 0x60, 0x80)

_bytes = st.integers(0, 255)
_word = st.one_of(_bytes, st.integers(0, 0xFFFF_FFFF))
_step = st.one_of(
    st.tuples(st.just("out"), st.sampled_from(PORTS), st.sampled_from((1, 2, 4)), _word),
    st.tuples(st.just("in"), st.sampled_from(PORTS), st.sampled_from((1, 2, 4)), st.just(0)),
    st.tuples(st.just("write"), st.sampled_from(PLACES), st.sampled_from((1, 4, 8)), _word),
    st.tuples(st.just("read"), st.sampled_from(PLACES), st.sampled_from((1, 4, 8)), st.just(0)),
    st.tuples(st.just("config"), st.sampled_from((0, 8, 11, 16)), st.sampled_from(CONFIG), _word),
    st.tuples(st.just("wait"), st.integers(0, SECOND // 50), st.just(0), st.just(0)),
    st.tuples(st.just("key"), _bytes, st.booleans(), st.just(0)),
    st.tuples(st.just("move"), _bytes, _bytes, st.just(0)),
    st.tuples(st.just("arrive"), _bytes, st.just(0), st.just(0)),
    st.tuples(st.just("acknowledge"), st.just(0), st.just(0), st.just(0)),
)
_steps = st.lists(_step, max_size=60)


def take(board: Board, step: tuple[str, int, int, int]) -> object:
    """Do one thing to a board; gives what there is to see."""
    kind, first, second, value = step
    ports, mmio = board.bus.ports, board.bus.mmio
    if kind == "out":
        return ports.write(first, second, value & (1 << 8 * second) - 1)
    if kind == "in":
        return ports.read(first, second)
    if kind in {"read", "write"} and board.memory.kind(first) is PageKind.RAM:
        view = board.memory.raw(first, 1)
        if kind == "write":
            view[0] = value & 0xFF
        return view[0]
    if kind == "write":
        return mmio.write(first, second, value)
    if kind == "read":
        return mmio.read(first, second)
    if kind == "config":
        ports.write(0xCF8, 4, 1 << 31 | first << 8 | second)
        ports.write(0xCFC, 4, value)
        return ports.read(0xCFC, 4)
    if kind == "wait":
        return board.clock.advance(board.clock.now() + first)
    if kind == "key":
        return board.keyboard.key(first, bool(second))
    if kind == "move":
        return board.mouse.move(first - 128, second - 128)
    if kind == "arrive":
        return board.uart.feed(bytes([first]))
    return board.pic.acknowledge() if board.pic.pending() else None


def observe(board: Board, steps: list[tuple[str, int, int, int]]) -> list[object]:
    """What a board shows while these things happen to it, and in the end."""
    seen = [take(board, step) for step in steps]
    seen += [take(board, ("in", port, 1, 0)) for port in PORTS]
    return [*seen, board.pic.pending(), board.vga.frame()]


@given(before=_steps, after=_steps)
def test_a_loaded_board_goes_on_as_the_saved_one(
    before: list[tuple[str, int, int, int]], after: list[tuple[str, int, int, int]]
) -> None:
    board, other = Board(), Board()
    for step in before:
        take(board, step)
    saved = board.save()
    other.clock.advance(board.clock.now())
    other.load(saved)
    assert other.save() == saved
    board.left.clear()
    other.left.clear()
    assert observe(other, after) == observe(board, after)
    assert other.left == board.left


@given(steps=_steps)
def test_a_reset_board_is_as_a_new_one(steps: list[tuple[str, int, int, int]]) -> None:
    """But for video memory, the battery's memory, the time and the tones that were heard."""
    board, new = Board(), Board()
    for step in steps:
        take(board, step)
    new.clock.advance(board.clock.now())
    for each in (board, new):
        for device in each.devices:
            device.reset()
    for name in ("pci", "bridge", "piix3", "vga", "keyboard", "port92", "fw_cfg", "ioapic"):
        states = [getattr(each, name).save_state() for each in (board, new)]
        for state in states:
            state.pop("levels", None)  # of wires, which others drive
            if name == "vga":
                del state["memory"]
        assert states[0] == states[1], name


@pytest.mark.parametrize("name", [type(device).__name__ for device in Board().devices])
@given(data=st.data())
def test_a_state_with_a_wrong_value_is_refused_or_taken(name: str, data: st.DataObject) -> None:
    """Never anything but the declared error; and what was taken can be worked with."""
    board = Board()
    device = next(each for each in board.devices if type(each).__name__ == name)
    state = device.save_state()
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.binary(max_size=300), st.text(max_size=3),
        st.lists(st.integers(), max_size=4), st.just({}),
    )  # fmt: skip
    if state:
        state[data.draw(st.sampled_from(sorted(state)))] = data.draw(values)
    try:
        device.load_state(state)
    except CorruptImageError:
        return
    for step in data.draw(st.lists(_step, max_size=10)):
        take(board, step)
