"""Saving and loading the state of devices."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.base import Device
from vdisk.vm.irq import IrqLine


class Part(Device):
    SAVED = ("value",)
    name = "part"

    def __init__(self) -> None:
        self.value = 1


class Chip(Device):
    SAVED = (
        *("number", "flag", "_text", "registers", "counters", "fifo", "irq", "timer", "part"),
        "named",
    )
    name = "chip"

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.fired: list[int] = []
        self.levels: list[bool] = []
        self.number, self.flag, self._text = 7, False, "idle"
        self.registers = bytearray(4)
        self.counters = [1, 2, 3]
        self.fifo: deque[int] = deque(maxlen=4)
        self.irq = IrqLine(self.levels.append)
        self.timer = self.clock.timer(lambda: self.fired.append(self.clock.now()))
        self.part = Part()
        self.named = {"a": 1}

    def restored(self) -> None:
        self.require(self.number < 100, "a number of 100 or more")


def busy_chip() -> Chip:
    chip = Chip()
    chip.number, chip.flag, chip._text = 42, True, "busy"
    chip.registers[2] = 9
    chip.counters[0] = 5
    chip.fifo.extend([1, 2])
    chip.irq.raise_()
    chip.timer.arm(1000)
    chip.part.value = 3
    chip.named["a"] = 8
    return chip


def test_a_loaded_device_has_the_state_that_was_saved() -> None:
    saved = busy_chip().save_state()
    loaded = Chip()
    loaded.load_state(saved)
    assert loaded.save_state() == saved
    assert loaded.levels == [True]
    loaded.clock.advance(2000)
    assert loaded.fired == [1000]


def test_saving_copies() -> None:
    chip = busy_chip()
    saved = chip.save_state()
    chip.registers[0] = 1
    chip.counters[0] = 99
    assert saved["registers"] == b"\0\0\x09\0"
    assert saved["counters"] == [5, 2, 3]


def test_a_timer_that_is_not_armed_is_cancelled_by_loading() -> None:
    idle = Chip().save_state()
    chip = busy_chip()
    chip.load_state(idle)
    chip.clock.advance(5000)
    assert chip.fired == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", "7"),
        ("number", True),
        ("number", 1 << 200),
        ("number", 100),
        ("flag", 1),
        ("text", b"idle"),
        ("registers", bytes(3)),
        ("registers", [0, 0, 0, 0]),
        ("counters", [1, 2]),
        ("counters", [1, 2, "3"]),
        ("fifo", [0] * 5),
        ("fifo", ["x"]),
        ("irq", 2),
        ("timer", "soon"),
        ("part", None),
        ("part", {}),
        ("named", {"b": 1}),
    ],
)
def test_a_state_of_another_shape_is_refused(field: str, value: Any) -> None:
    saved = Chip().save_state()
    saved[field] = value
    with pytest.raises(CorruptImageError, match=field.split(".", maxsplit=1)[0]):
        Chip().load_state(saved)


def test_a_missing_field_is_named() -> None:
    saved = Chip().save_state()
    del saved["fifo"]
    with pytest.raises(CorruptImageError, match="no fifo"):
        Chip().load_state(saved)
