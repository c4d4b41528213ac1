"""Port 92h, the parallel port, isa-debug-exit and the debug console."""

from __future__ import annotations

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.devices.debugexit import DebugConsole, DebugExit
from vdisk.vm.devices.parallel import ParallelPort
from vdisk.vm.devices.port92 import Port92
from vdisk.vm.irq import IrqLine


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class TestPort92:
    @pytest.fixture
    def log(self) -> list[object]:
        return []

    @pytest.fixture
    def bus(self, log: list[object]) -> Bus:
        bus = Bus()
        self.port = Port92(bus, log.append, lambda: log.append("reset"))
        return bus

    def test_bit_1_gates_a20(self, bus: Bus, log: list[object]) -> None:
        bus.ports.write(0x92, 1, 0xFE)
        assert bus.ports.read(0x92, 1) == 2
        bus.ports.write(0x92, 1, 0x02)
        bus.ports.write(0x92, 1, 0x00)
        assert log == [True, False]

    def test_a_rising_bit_0_resets_the_processor(self, bus: Bus, log: list[object]) -> None:
        bus.ports.write(0x92, 1, 1)
        bus.ports.write(0x92, 1, 1)
        bus.ports.write(0x92, 1, 0)
        bus.ports.write(0x92, 1, 1)
        assert log == ["reset", "reset"]
        self.port.reset()
        assert bus.ports.read(0x92, 1) == 0


class TestParallelPort:
    def test_a_strobe_prints_a_byte(self) -> None:
        bus, sink, levels = Bus(), Sink(), []
        ParallelPort(bus, IrqLine(levels.append), sink)
        for byte in b"ok":
            bus.ports.write(0x378, 1, byte)
            assert bus.ports.read(0x378, 1) == byte
            assert bus.ports.read(0x379, 1) & 0xB8 == 0x98
            bus.ports.write(0x37A, 1, 0x0D)
            bus.ports.write(0x37A, 1, 0x0C)
        assert sink.data == b"ok"
        assert levels == []
        bus.ports.write(0x37A, 1, 0x1D)
        assert levels == [True, False]

    def test_no_printer_is_busy_and_out_of_paper(self) -> None:
        bus = Bus()
        ParallelPort(bus, IrqLine())
        bus.ports.write(0x37A, 1, 0x0D)
        assert bus.ports.read(0x379, 1) == 0x78
        assert bus.ports.read(0x37A, 1) == 0xCD

    def test_state(self) -> None:
        port = ParallelPort(Bus(), IrqLine())
        saved = port.save_state()
        port.load_state(saved)
        with pytest.raises(CorruptImageError):
            port.load_state(saved | {"data": 256})


def test_debug_exit_status_is_qemus() -> None:
    bus, stopped = Bus(), []
    DebugExit(bus, stopped.append)
    bus.ports.write(0xF4, 4, 0x10)
    bus.ports.write(0xF4, 1, 0)
    assert stopped == [0x21, 1]
    assert bus.ports.read(0xF4, 4) == 0


def test_the_debug_console_announces_itself() -> None:
    bus, sink = Bus(), Sink()
    DebugConsole(bus, sink)
    assert bus.ports.read(0xE9, 1) == 0xE9
    bus.ports.write(0xE9, 1, 0x41)
    assert sink.data == b"A"
