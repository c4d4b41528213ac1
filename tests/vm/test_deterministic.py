"""Deterministic machines: the same run each time, and runs that a journal repeats."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.errors import FormatError, InvalidRequestError
from vdisk.vm import Machine
from vdisk.vm._machine.turns import Stimulus, TurnClock, load_journal
from vdisk.vm.monitor.control import RunState

pytestmark = [
    requires_peer("nasm"),
    pytest.mark.skipif(
        importlib.util.find_spec("llvmlite") is None, reason="llvmlite is not installed"
    ),
]
MIB = 1 << 20

CLOCKS = """
    ; print the low byte of the 8254's counter 200 times, and what arrives on the serial line
    mov al, 0x34                ; a rate generator of 65536 clocks
    out 0x43, al
    mov al, 0
    out 0x40, al
    out 0x40, al
    mov cx, 200
again:
    mov al, 0
    out 0x43, al
    in al, 0x40
    call putc
    in al, 0x40
    mov bx, 300
wait_a_little:
    dec bx
    jnz wait_a_little
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz nothing
    mov dx, 0x3f8
    in al, dx
    call putc
    cmp al, 27
    je finished
nothing:
    cmp byte [0x6000], 0
    jne again                   ; for ever, until Escape
    loop again
finished:
    mov al, 1
    out 0xf4, al
    jmp hang
"""


def machine(tmp_path: Path, source: str, **options: Any) -> Machine:
    bios = guests.assemble_bios(tmp_path, source)
    settings = {"memory": 4 * MIB, "accel": "llvm", "bios": bios, "deterministic": True}
    return Machine(**{**settings, **options})


def footprint(found: Machine) -> tuple[bytes, list[int], int, str]:
    """Everything that must be the same."""
    memory = hashlib.sha256(found.memory.read(0, 0xA0000)).hexdigest()
    counts = found.statistics()["instructions"]
    return found.serial[0].output(), counts, found.clock.now(), memory


def test_the_same_run_happens_each_time(tmp_path: Path) -> None:
    seen = []
    for pause in (0, 0.05):
        with machine(tmp_path, CLOCKS) as found:
            found.start()
            time.sleep(pause)
            found.pause()  # of the host's doing: leaves no trace
            found.run_until(timeout=PATIENCE)
            seen.append(footprint(found))
    assert seen[0] == seen[1]
    assert len(set(seen[0][0])) > 8  # the clock was really looked at


def test_processors_take_turns_in_the_same_order(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        source = guests.SMP.replace("OTHERS", "3").replace(
            "jmp hang", "out 0xf4, al\n    jmp hang", 1
        )
        with machine(tmp_path, source, cpus=4) as found:
            found.run_until(timeout=PATIENCE)
            seen.append(footprint(found))
    assert seen[0] == seen[1] and seen[0][0] == b"*"


MWAIT = """
    mov byte [0x7f80], 1        ; "go", for those who wait at that line …
each_time:
    mov ax, 0x7f00              ; … and this one waits until they have counted themselves again
    xor cx, cx
    xor dx, dx
    db 0x0f, 0x01, 0xc8         ; MONITOR
    cmp word [0x7f00], 2 * OTHERS
    je all
    db 0x0f, 0x01, 0xc9         ; MWAIT
    jmp each_time
all:
    mov al, 1
    out 0xf4, al
    jmp hang
"""
COUNT_AGAIN = """
    lock inc word [0x7f00]
look:
    mov ax, 0x7f80
    xor cx, cx
    xor dx, dx
    db 0x0f, 0x01, 0xc8
    cmp byte [0x7f80], 0
    jne go
    db 0x0f, 0x01, 0xc9
    jmp look
go:
    lock inc word [0x7f00]
"""


def test_processors_that_wait_for_each_others_stores_do_so_each_time(tmp_path: Path) -> None:
    source = guests.SMP.replace("lock inc word [0x7f00]", COUNT_AGAIN)
    source = source.replace("    jmp hang", MWAIT, 1).replace("OTHERS", "3")
    seen = []
    for _ in range(2):
        with machine(tmp_path, source, cpus=4) as found:
            found.run_until(timeout=PATIENCE)
            seen.append(footprint(found))
    assert seen[0] == seen[1] and seen[0][0] == b"*"


def test_a_journal_repeats_what_came_from_outside(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    with machine(tmp_path, CLOCKS.replace("mov cx", "mov byte [0x6000], 1\n mov cx")) as first:
        first.start()
        for letter in "hello":
            time.sleep(0.02)
            first.serial[0].send(letter)
        first.type_keys("x")
        first.reset()
        first.serial[0].send("\x1b")
        first.run_until(timeout=PATIENCE)
        first.save_journal(journal)
        expected = footprint(first)
    with machine(tmp_path, CLOCKS.replace("mov cx", "mov byte [0x6000], 1\n mov cx"),
                 replay=journal) as second:  # fmt: skip
        second.start()
        with pytest.raises(InvalidRequestError, match="takes no other input"):
            second.serial[0].send("more")
        second.run_until(timeout=PATIENCE)
        assert footprint(second) == expected
    kinds = [json.loads(line)[1] for line in Path(journal).read_text().splitlines()]
    assert kinds.count("serial") == 6 and "reset" in kinds and "key" in kinds


def test_time_passes_at_once_while_nobody_works(tmp_path: Path) -> None:
    source = "sti\n hlt\n" * 3 + "jmp hang"
    with machine(tmp_path, source) as found:
        began = time.monotonic()
        found.start()
        found.pause()
        assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(
    "text", ["[1, 2, 3]", "nonsense", '["0", "key", []]', '[0, "key"]', "[" * 5000, "\xff"]
)
def test_what_is_no_journal(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(FormatError):
        load_journal(str(path))


@pytest.mark.parametrize(
    "stimulus",
    [[0, "dance", []], [0, "key", [1]], [0, "serial", [9, "00"]], [0, "serial", [0, "x"]]],
)
def test_a_journal_that_cannot_be_repeated_stops_the_machine(
    tmp_path: Path, stimulus: list[Any]
) -> None:
    path = tmp_path / "journal"
    path.write_text(json.dumps(stimulus) + "\n")
    with machine(tmp_path, "jmp hang", replay=str(path)) as found:
        found.start()
        assert found.wait(PATIENCE)
        assert found.state is RunState.INTERNAL_ERROR and "at 0 ns" in found.error


SLEEP = """
    mov eax, 0x80000b40         ; power management, its registers at 600h
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    mov eax, 0x601
    out dx, eax
    mov eax, 0x80000b80
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    mov al, 1
    out dx, al
    mov al, 0x0f                ; was it a reset behind S3?
    out 0x70, al
    in al, 0x71
    cmp al, 0xfe
    je woken
    mov al, 's'
    call putc
    jmp sleep
woken:
    mov dx, 0x600
    in ax, dx
    mov bx, ax
    mov al, 'r'
    cmp bx, 0x8400              ; WAK_STS and RTC_STS
    je say
    mov al, 'p'
    cmp bx, 0x8100              ; WAK_STS and PWRBTN_STS
    je say
    mov al, '?'
say:
    call putc
    inc byte [0x6000]           ; memory has stayed
    cmp byte [0x6000], 3
    je finished
sleep:
    mov dx, 0x602
    mov ax, 0x400               ; RTC_EN
    out dx, ax
    mov cx, 3
    mov bl, 1                   ; the alarm: each second
alarm:
    mov al, bl
    out 0x70, al
    mov al, 0xc0
    out 0x71, al
    add bl, 2
    loop alarm
    mov al, 0x0b
    out 0x70, al
    mov al, 0x22
    out 0x71, al
    mov dx, 0x604
    mov ax, 0x2401              ; SLP_EN, the type of S3
    out dx, ax
    jmp hang
finished:
    mov al, 1
    out 0xf4, al
    jmp hang
"""


def test_sleep_and_waking_are_repeated(tmp_path: Path) -> None:
    """By the alarm, by a button at some time before it, by the alarm again."""
    journal = str(tmp_path / "journal")
    with machine(tmp_path, SLEEP) as found:
        found.run_until(serial="sr", timeout=PATIENCE)
        found.pause()
        assert found.state is RunState.PAUSED
        found.press_power_button()
        found.run_until(timeout=PATIENCE)
        assert found.serial[0].output() in {b"srpr", b"srrp"}
        found.save_journal(journal)
        seen = footprint(found)
    with machine(tmp_path, SLEEP, replay=journal) as found:
        found.run_until(timeout=PATIENCE)
        assert footprint(found) == seen


def test_what_cannot_be_deterministic_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="has no network"):
        machine(tmp_path, "jmp hang", network="user")
    if "kvm" in guests.accelerators():
        with pytest.raises(InvalidRequestError, match="counts no instructions"):
            machine(tmp_path, "jmp hang", accel="kvm")


def test_the_clock_of_turns() -> None:
    class Vcpu:
        instructions = 100
        exits = 0

        def request_exit(self) -> None:
            self.exits += 1

    clock, vcpu, fired = TurnClock(), Vcpu(), []
    timer = clock.timer(lambda: fired.append(clock.now()))
    timer.arm(50_000)
    assert clock.begin_turn(vcpu) == 5000  # up to the timer  # type: ignore[arg-type]
    vcpu.instructions += 2000
    assert clock.now() == 20_000
    clock.timer(lambda: None).arm(30_000)  # earlier: the turn has to end
    assert vcpu.exits == 1
    vcpu.instructions += 3100
    clock.end_turn()
    assert clock.now() == 51_000 and fired == [50_000]
    assert not clock.skip_to_deadline()
    assert Stimulus(1, "key", []).time == 1
