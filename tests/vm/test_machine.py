"""Whole machines with small firmware of their own, on every accelerator that works here."""

from __future__ import annotations

import importlib.util
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.tools import small_guests as guests
from tests.tools.leftovers import no_new_threads
from tests.tools.patience import PATIENCE, eventually
from tests.tools.peers import requires_peer
from vdisk.errors import InvalidRequestError
from vdisk.vm import Machine, MachineError, MachineTimeoutError
from vdisk.vm.monitor.control import MachineEvent, RunState

pytestmark = requires_peer("nasm")
MIB = 1 << 20


def test_a_guest_speaks_on_its_serial_line(make: guests.Make) -> None:
    machine = make("mov si, text\n call puts\n jmp hang\ntext: db 'hello, ', 'world', 13, 10, 0")
    assert machine.state is RunState.PRELAUNCH
    assert machine.run_until(serial="hello", timeout=PATIENCE) == b"hello"
    assert machine.run_until(serial="world\r\n", timeout=PATIENCE) == b", world\r\n"
    assert machine.state is RunState.RUNNING
    with pytest.raises(MachineTimeoutError, match=r"b'hello' did not come within 0.1 seconds"):
        machine.run_until(serial="hello", timeout=0.1)


def test_a_guest_listens_to_its_serial_line(make: guests.Make) -> None:
    machine = make(guests.ECHO)
    machine.start()
    text = "All Work And No Play " * 200
    machine.serial[0].send(text)
    machine.run_until(serial=text.swapcase().replace(" ", "\0"), timeout=PATIENCE)


def test_instructions_are_counted_while_it_runs(make: guests.Make) -> None:
    machine = make(guests.ECHO)
    machine.start()
    if not machine.accelerator.counts_instructions:
        assert machine.statistics()["instructions"] == [0]
        return
    counts = [0]

    def counted() -> bool:
        (count,) = machine.statistics()["instructions"]
        if count != counts[-1]:
            counts.append(count)
        return len(counts) > 3

    assert eventually(counted)
    machine.pause()
    assert counts == sorted(counts)
    assert counts[3] <= machine.statistics()["instructions"][0]


TICKS = (
    guests.TIMER
    + """
    sti
wait_more:
    hlt
    cmp bx, 100
    jb wait_more
    mov al, '!'
    call putc
    jmp hang
tick:
    inc bx
    push ax
    mov al, 0x20
    out 0x20, al
    pop ax
    iret
"""
)


@pytest.mark.parametrize("apic", [True, False])
def test_timer_interrupts_wake_a_halted_processor(make: guests.Make, apic: bool) -> None:
    machine = make(TICKS, apic=apic)
    began = time.monotonic()
    machine.run_until(serial="!", timeout=PATIENCE)
    assert time.monotonic() - began > 0.09  # a hundred ticks of a millisecond


NMIS = """
    mov word [8], nmi           ; vector 2
    mov word [10], cs
    xor bx, bx
    mov al, '>'
    call putc
spin:
    cmp bx, 1
    jb spin
again:
    mov al, 'h'
    call putc
    hlt
    jmp again
nmi:
    inc bx
    mov al, 'n'
    call putc
    iret
"""


def test_halted_means_halted_after_an_nmi_that_came_before(make: guests.Make) -> None:
    """It once ended the next HLT, too: memtest86+ passed its barriers too early, and hung."""
    machine = make(NMIS)
    machine.run_until(serial=">", timeout=PATIENCE)
    machine.control.inject_nmi()
    machine.run_until(serial="nh", timeout=PATIENCE)
    with pytest.raises(MachineTimeoutError):
        machine.run_until(serial="h", timeout=0.3)
    machine.control.inject_nmi()
    machine.run_until(serial="nh", timeout=PATIENCE)


def test_processors_start_by_startup_ipis(make: guests.Make) -> None:
    machine = make(guests.SMP.replace("OTHERS", "3"), cpus=4)
    machine.run_until(serial="*", timeout=PATIENCE)
    assert machine.memory.read(0x7F00, 2) == b"\x03\x00"


RESETS = """
    mov al, 0x50                ; a byte of CMOS memory counts the boots
    out 0x70, al
    in al, 0x71
    inc al
    out 0x71, al
    add al, '0'
    call putc
    cmp al, '4'
    je hang
"""


@pytest.mark.parametrize(
    "how",
    [
        "mov al, 1\n out 0x92, al\n jmp hang",
        "mov al, 0xfe\n out 0x64, al\n jmp hang",
        "mov dx, 0xcf9\n mov al, 6\n out dx, al\n jmp hang",
    ],
    ids=["port 92h", "keyboard controller", "CF9h"],
)
def test_a_guest_resets_itself(make: guests.Make, how: str) -> None:
    machine = make(RESETS + how)
    events: list[MachineEvent] = []
    machine.subscribe(events.append)
    machine.run_until(serial="1234", timeout=PATIENCE)
    assert events == [MachineEvent("RESET", {"guest": True, "reason": "guest-reset"})] * 3


TRIPLE_FAULT = """
    lidt [cs:nothing]
    lgdt [cs:table]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword 8:0xf0000 + wide
bits 32
wide:
    ud2
bits 16
nothing: dw 0, 0, 0
align 8
descriptors: dq 0, 0x00cf9b000000ffff
table: dw 15
    dd 0xf0000 + descriptors
"""


def test_a_triple_fault_resets(make: guests.Make) -> None:
    make(RESETS + TRIPLE_FAULT).run_until(serial="1234", timeout=PATIENCE)


def test_without_reboot_a_reset_is_the_end(make: guests.Make) -> None:
    machine = make(RESETS + "mov al, 1\n out 0x92, al\n jmp hang", reboot=False)
    machine.run_until(timeout=PATIENCE)
    assert machine.state is RunState.SHUTDOWN
    assert machine.serial[0].output() == b"1"
    with pytest.raises(MachineError, match="the machine ended before b'2' came"):
        machine.run_until(serial="2")


def test_the_reset_button_and_pausing(make: guests.Make) -> None:
    machine = make(RESETS + "jmp hang")
    machine.run_until(serial="1", timeout=PATIENCE)
    machine.reset()
    machine.run_until(serial="2", timeout=PATIENCE)
    machine.pause()
    assert machine.state is RunState.PAUSED
    then = machine.clock.now()
    machine.reset()
    time.sleep(0.05)
    assert machine.clock.now() == then and machine.serial[0].output() == b"12"
    machine.run_until(serial="3", timeout=PATIENCE)


POWER_OFF = """
    mov dx, 0xcf8               ; function 1.3: PMBA := 600h, decode
    mov eax, 0x80000b40
    out dx, eax
    mov dx, 0xcfc
    mov eax, 0x601
    out dx, eax
    mov dx, 0xcf8
    mov eax, 0x80000b80
    out dx, eax
    mov dx, 0xcfc
    mov al, 1
    out dx, al
    mov al, '?'
    call putc
wait_for_button:
    mov dx, 0x600
    in ax, dx
    test ah, 1                  ; PWRBTN_STS
    jz wait_for_button
    mov dx, 0x604
    mov ax, 0x2000
    out dx, ax
    jmp hang
"""


@pytest.mark.parametrize("stay", [False, True])
def test_the_power_button_and_power_off(make: guests.Make, stay: bool) -> None:
    machine = make(POWER_OFF, stay=stay)
    names: list[str] = []
    machine.subscribe(lambda event: names.append(event.name))
    machine.run_until(serial="?", timeout=PATIENCE)
    machine.press_power_button()
    assert eventually(lambda: machine.state is RunState.SHUTDOWN)
    assert machine.wait(0.1 if stay else PATIENCE) is not stay
    assert names == ["POWERDOWN", "SHUTDOWN"]
    if stay:
        machine.reset()
        machine.run_until(serial="?", timeout=PATIENCE)


def test_the_debug_exit_port(make: guests.Make) -> None:
    machine = make("mov al, 21\n out 0xf4, al\n mov al, 'x'\n call putc\n jmp hang")
    machine.run_until(timeout=PATIENCE)
    assert machine.exit_status == 43
    assert machine.serial[0].output() == b""  # nothing is executed after it


KEYS = """
again:
    in al, 0x64
    test al, 1
    jz again
    in al, 0x60
    call putc
    jmp again
"""


def test_typing_reaches_the_keyboard_controller(make: guests.Make) -> None:
    machine = make(KEYS)
    machine.start()
    machine.type_keys("hA\n")
    # scan code set 2, untranslated: h; shift, a; enter
    machine.run_until(serial=bytes.fromhex("33 f033 12 1c f01c f012 5a f05a"), timeout=PATIENCE)
    with pytest.raises(InvalidRequestError, match="cannot type"):
        machine.type_keys("ä")


def test_pausing_and_resuming_a_busy_machine_loses_nothing(make: guests.Make) -> None:
    source = "mov bx, 2000\nagain:\n mov al, 'x'\n call putc\n dec bx\n jnz again\n"
    machine = make(source + "mov al, '.'\n call putc\n jmp hang")
    machine.start()
    for _ in range(20):
        machine.pause()
        machine.resume()
    assert machine.run_until(serial=".", timeout=PATIENCE) == b"x" * 2000 + b"."


class Interrupted(Exception):
    """By a signal."""


def test_a_signal_ends_waiting_whoever_it_comes_to(make: guests.Make) -> None:
    """One that another thread handles, or that comes just before the wait, wakes nobody up."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    def signal_here() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    other = threading.Timer(0.2, signal_here)
    try:
        machine = make(guests.ECHO)
        machine.start()
        other.start()
        with pytest.raises(Interrupted):
            machine.wait()
    finally:
        other.join()
        signal.signal(signal.SIGUSR1, before)


def test_closing_ends_all_threads(make: guests.Make) -> None:
    with no_new_threads():
        machine = make(guests.ECHO, cpus=2)
        machine.start()
        machine.close()
    assert machine.state is RunState.SHUTDOWN
    machine.close()


def test_machines_that_cannot_be(tmp_path: Path) -> None:
    for options, message in (
        ({"cpus": 0}, "0 processors"),
        ({"cpus": 2, "apic": False}, "local APICs"),
        ({"serial_ports": 5}, "5 serial ports"),
        ({"boot": "x"}, "boot order"),
        ({"accel": "fast"}, "accelerator 'fast'"),
        ({"memory": 1000}, "1000 bytes"),
        ({"disks": ["/nowhere"]}, "/nowhere"),
        ({"disks": ["x,if=scsi"]}, "if=scsi"),
    ):
        with pytest.raises(Exception, match=message):
            Machine(**{"memory": MIB, **options})


MESSAGE = """
bits 16
org 0x7c00
    mov si, text
again:
    lodsb
    test al, al
    jz done
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp again
done:
    hlt
    jmp done
text: db 'a boot sector speaks', 0
times 510 - ($ - $$) db 0
dw 0xaa55
"""


@pytest.mark.skipif(importlib.util.find_spec("iced_x86") is None, reason="no iced_x86")
def test_the_interpreter_runs_a_whole_machine(tmp_path: Path) -> None:
    """From power-on, through our BIOS, to a boot sector that writes on the screen."""
    (tmp_path / "disk.raw").write_bytes(guests.assemble(tmp_path, MESSAGE) + bytes(MIB))
    disk = f"{tmp_path}/disk.raw,format=raw"
    with Machine(memory=16 * MIB, accel="interp", disks=[disk]) as machine:
        machine.run_until(screen="a boot sector speaks", timeout=60)
        machine.pause()
        (count,) = machine.statistics()["instructions"]
        assert count > 20 * 7  # its loop, for each letter


@requires_peer(guests.SEABIOS)
@pytest.mark.parametrize("interface", ["virtio", "ide"])
def test_seabios_boots_a_boot_sector(tmp_path: Path, interface: str) -> None:
    accelerators = guests.accelerators()
    if not isinstance(accelerators[-1], str):
        pytest.skip("no accelerator")
    disk = guests.boot_disk(tmp_path, "'B'", interface)
    with Machine(
        memory=32 * MIB, accel=accelerators[-1], bios=guests.SEABIOS, disks=[disk]
    ) as machine:
        machine.run_until(serial="B", timeout=60)
        (drive,) = machine.statistics()["drives"].values()
        assert drive["read"]["operations"] >= 1
