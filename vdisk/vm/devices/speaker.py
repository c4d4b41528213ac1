"""The PC speaker behind port 61h (system control port B; 82371SB data sheet, section 4.7).

::

    bit 0  GATE of counter 2      bit 4  refresh, toggles with each 15 us (read)
    bit 1  speaker data enable    bit 5  OUT of counter 2 (read)
    bits 2, 3  parity and channel check disable      bits 6, 7  their NMI causes: never here

What the speaker plays is kept as a list of tones, for whoever wants to hear it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vdisk.vm.devices.base import Device
from vdisk.vm.devices.pit import FREQUENCY, SQUARE

if TYPE_CHECKING:
    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.pit import Pit

PORT = 0x61
GATE, DATA_ENABLE, REFRESH, OUTPUT = 0x01, 0x02, 0x10, 0x20
WRITABLE = 0x0F
REFRESH_PERIOD = 15_085  # ns: 18 clocks of the timer
REMEMBERED = 4096
"""Tones that are kept; a guest may change them as often as it likes."""


class Tone(NamedTuple):
    """From ``time`` (ns of the clock) on, a square wave of this many Hz; 0 is silence."""

    time: int
    frequency: int


class Speaker(Device):
    """Port 61h.  ``tones``: what was played, the newest last."""

    SAVED: ClassVar[tuple[str, ...]] = ("_control",)
    name = "speaker"

    def __init__(self, bus: Bus, clock: Clock, pit: Pit) -> None:
        self.tones: deque[Tone] = deque(maxlen=REMEMBERED)
        self._clock = clock
        self._counter = pit.counters[2]
        self._control = 0
        pit.on_speaker_change(self._changed)
        bus.ports.map(PORT, 1, self._read, self._write, "port 61h")

    def reset(self) -> None:
        self._control = 0
        self._counter.set_gate(False)
        self._changed()

    def frequency(self) -> int:
        """What is heard now, in Hz; 0: nothing."""
        if self._control & (GATE | DATA_ENABLE) != GATE | DATA_ENABLE:
            return 0
        if self._counter.mode != SQUARE or not self._counter.counting:
            return 0
        return FREQUENCY // self._counter.latest()

    def _changed(self) -> None:
        frequency = self.frequency()
        if frequency != (self.tones[-1].frequency if self.tones else 0):
            self.tones.append(Tone(self._clock.now(), frequency))

    def _read(self, _offset: int, _size: int) -> int:
        refresh = REFRESH if self._clock.now() // REFRESH_PERIOD & 1 else 0
        output = OUTPUT if self._counter.output(self._counter.now()) else 0
        return self._control | refresh | output

    def _write(self, _offset: int, _size: int, value: int) -> None:
        self._control = value & WRITABLE
        self._counter.set_gate(bool(value & GATE))
        self._changed()

    def restored(self) -> None:
        self.require(0 <= self._control <= WRITABLE, "a register")
