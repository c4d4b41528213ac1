"""The diskette controller under any commands: it answers, ends, and keeps what is written to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vm.devices.test_dma import FROM_MEMORY
from tests.unit.vm.devices.test_fdc import BUFFER, CONTENT, DOR, FIFO, Driver, offset

COMMANDS = (*range(0x20), 0x46, 0xC5, 0xE6, 0x4D, 0x8F, 0xCF, 0x94)
_small = st.one_of(st.integers(0, 5), st.sampled_from((0x12, 0x4F, 0xFF)), st.integers(0, 255))
_command = st.tuples(
    st.sampled_from(COMMANDS), st.lists(_small, min_size=9, max_size=9), st.integers(0, 40)
)
_place = st.tuples(st.integers(0, 79), st.integers(0, 1), st.integers(1, 18))


@given(commands=st.lists(_command, max_size=25), mode=st.integers(0, 255))
def test_any_commands_leave_it_usable(
    commands: list[tuple[int, list[int], int]], mode: int
) -> None:
    driver = Driver()
    driver.start()
    for command, words, reads in commands:
        driver.program(BUFFER, 512 * (words[0] % 40 + 1), 0x40 | mode & 0x3C)
        for word in (command, *words):
            driver.out(FIFO, word)
        for _ in range(reads):
            driver.bus.ports.read(FIFO, 1)
            assert 0 <= driver.status() <= 0xFF
        Driver().fdc.load_state(driver.fdc.save_state())
    driver.out(DOR, 0, 0x1C)
    assert [driver.sense()[0] for _ in range(5)] == [0xC0, 0xC1, 0xC2, 0xC3, 0x80]
    driver.command(0x03, 0xDF, 0x02)
    driver.seek(0)
    driver.program(BUFFER, 512)
    assert driver.move(0x46, 0, 0, 1)[:3] == [0, 0, 0]


@given(writes=st.lists(st.tuples(_place, st.integers(1, 18), st.integers(0, 255)), max_size=8))
def test_what_is_written_is_there(writes: list[tuple[tuple[int, int, int], int, int]]) -> None:
    driver, model = Driver(), bytearray(CONTENT)
    driver.start()
    for (cylinder, head, sector), most, value in writes:
        count = min(most, 19 - sector)
        driver.seek(cylinder)
        driver.memory.write(BUFFER, bytes([value]) * 512 * count)
        driver.program(BUFFER, 512 * count, FROM_MEMORY)
        assert driver.move(0x45, cylinder, head, sector)[1:3] == [0, 0]
        begin = offset(cylinder, head, sector)
        model[begin : begin + 512 * count] = bytes([value]) * 512 * count
    assert driver.disk.device is not None
    assert driver.disk.device.read(0, len(model)) == model
