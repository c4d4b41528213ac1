"""What a person may type, and what is said."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.fake_machine import FakeMachine
from vdisk.vm.display.image import encode_png
from vdisk.vm.monitor import hmp
from vdisk.vm.monitor.control import RunState
from vdisk.vm.monitor.prompt import Prompt

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


def test_every_command_has_help(machine: FakeMachine) -> None:
    lines = hmp.execute(machine, "help").splitlines()
    assert len(lines) == len(hmp.COMMANDS)
    assert "stop|s -- stop emulation" in lines
    assert hmp.execute(machine, "? eject") == (
        "eject [-f] device -- take a medium out (-f: by force)\n"
    )
    assert hmp.execute(machine, "info").count("\n") == len(hmp.INFO)


@pytest.mark.parametrize("name", [f"info {name}" for name in hmp.INFO])
def test_every_kind_of_information(machine: FakeMachine, name: str) -> None:
    said = hmp.execute(machine, name)
    assert said.endswith("\n")
    assert "expected" not in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", ""),
        ("foo bar", "unknown command: 'foo'\n"),
        ("info foo", "unknown command: 'info foo'\n"),
        ("eject", 'eject: device expected\nTry "help eject" for more information\n'),
        (
            "stop 1",
            "stop: extraneous characters at the end of line\n"
            'Try "help stop" for more information\n',
        ),
        ("eject foo", "Error: Device 'foo' not found\n"),
        ("sendkey ctrl-foo", "invalid parameter: foo\n"),
        ("loadvm no", "Error: Snapshot 'no' does not exist in one or more devices\n"),
        ("sendkey a x", "invalid number: x\n"),
        ("change ide1-cd0 /x raw often", "invalid parameter: often\n"),
        ("info registers", "\nCPU#0\nRIP=000000000000fff0\n"),
        ("xp /3xb 0x10", "0000000000000010: 0x10 0x11 0x12\n"),
        (
            "xp /3xg 16",
            "0000000000000010: 0x1716151413121110 0x1f1e1d1c1b1a1918\n"
            "0000000000000020: 0x2726252423222120\n",
        ),
        ("xp 4", "0000000000000004: 0x07060504\n"),
        ("xp /99999x 0", "xp: at most 4096 numbers\n"),
        ("xp /4db 0xfe", "00000000000000fe:   -2   -1    0    1\n"),
        ("xp /2c 0x40", "0000000000000040: '@' 'A'\n"),
        ("xp /uh 0x10", "0000000000000010:  4368\n"),
        ("xp /ob 8", "0000000000000008: 0010\n"),
        ("xp /4z 0", "xp: invalid format '/4z'\n"),
        ("xp /4x", "xp: an address expected\n"),
        ("x /2i 0x2000", f"0x00002000:  {'90':24} nop\n0x00002001:  {'90':24} nop\n"),
        ("x /1x 0x3000", "cannot access memory at 0x3000\n"),
        ("p $eax + 2 * 3", "0x123a\n"),
        ("p /d ~0", "-1\n"),
        ("p /u (1 + 010) % 0x4", "1\n"),
        ("p $nothing", "unknown register: nothing\n"),
        ("p 1 / 0", "division by zero\n"),
        ("p (1", "unexpected end of expression\n"),
        ("p 1 1", "'1' is not expected in expression\n"),
        ("p 1 # 2", "invalid char '#' in expression\n"),
        ("p 089", "invalid number: 089\n"),
        ("cpu 1", "invalid CPU index\n"),
        ("info cpus", "* CPU #0: pc=0x00000000000ffff0 (halted)\n"),
        ("hostfwd_add tcp::1-:2", ""),
        ("hostfwd_add net0 tcp::1-:2", ""),
        ("hostfwd_add n tcp::1-:2", "there is no network 'n' (there is: net0)\n"),
        ("hostfwd_remove tcp::2222", "host forwarding rule for tcp::2222 removed\n"),
        ("hostfwd_remove tcp::1", "host forwarding rule for tcp::1 not found\n"),
        ("info network", "net0: user\n  tcp 127.0.0.1:2222 -> the guest:22\n"),
        (
            "info pci",
            "  Bus  0, device   2, function 0:\n"
            "    Class 0300: PCI device 1234:1111\n"
            "      BAR0: memory at 0xe0000000 [0xe0ffffff], 0x1000000 bytes\n"
            "      BAR1: I/O, not mapped, 0x10 bytes\n"
            '      id "vga"\n',
        ),
        ("block_resize nothing 10", "Error: Device 'nothing' not found\n"),
        (
            "block_resize ide0-hd0 much",
            "size 'much' is not a number with an optional suffix kMGTPE\n",
        ),
    ],
)
def test_what_is_said(machine: FakeMachine, line: str, said: str) -> None:
    assert hmp.execute(machine, line) == said


def test_an_open_quote(machine: FakeMachine) -> None:
    assert "unterminated" in hmp.execute(machine, 'eject "')
    assert "too long" in hmp.execute(machine, "x" * 5000)


def test_running(machine: FakeMachine) -> None:
    for line in ("s", "c", "system_reset", "system_powerdown", "system_wakeup", "nmi", "q"):
        assert hmp.execute(machine, line) == ""
    assert machine.calls == ["stop", "cont", "reset", "powerdown", "wakeup", "nmi", "quit"]
    machine.state = RunState.IO_ERROR
    assert hmp.execute(machine, "info status") == "VM status: paused (io-error)\n"


def test_media_and_snapshots(machine: FakeMachine) -> None:
    assert hmp.execute(machine, "eject -f ide1-cd0") == ""
    assert "ide1-cd0: [not inserted]" in hmp.execute(machine, "info block")
    assert hmp.execute(machine, 'change ide1-cd0 "/my disk.iso" raw') == ""
    said = hmp.execute(machine, "info block ide1-cd0")
    assert said.startswith("ide1-cd0: /my disk.iso (raw, read-only)\n")
    assert "tray closed" in said
    hmp.execute(machine, "snapshot_blkdev ide0-hd0 new.qcow2")
    assert machine.calls == ["snapshot ide0-hd0 new.qcow2 qcow2 absolute-paths"]


def test_disks_are_resized_and_committed(machine: FakeMachine) -> None:
    hmp.execute(machine, "block_resize ide0-hd0 20")
    hmp.execute(machine, "block_resize ide0-hd0 1G")
    hmp.execute(machine, "commit ide0-hd0")
    hmp.execute(machine, "commit all")
    assert machine.calls == [
        *(f"resize ide0-hd0 {size}" for size in (20 << 20, 1 << 30)),
        *["commit ide0-hd0"] * 2,
    ]


def test_expressions_are_bounded(machine: FakeMachine) -> None:
    assert "too deep" in hmp.execute(machine, "p " + "(" * 100)
    assert hmp.execute(machine, "p 0xffffffffffffffff + 2") == "0x1\n"
    assert hmp.execute(machine, "p 99999999999999999999999999 & 0xf") != ""


@given(
    st.sampled_from(("x", "xp", "p", "cpu", "info")),
    st.text("/0x1f8dcsiwb$()+-*%~ eaxip\"'\\\n", max_size=40),
)
def test_any_words_have_an_answer(command: str, words: str) -> None:
    assert isinstance(hmp.execute(FakeMachine(), f"{command} {words}"), str)


def test_memory_is_saved(machine: FakeMachine, tmp_path: Path) -> None:
    assert hmp.execute(machine, f"pmemsave 0x10 4 {tmp_path}/p") == ""
    assert (tmp_path / "p").read_bytes() == bytes([0x10, 0x11, 0x12, 0x13])
    assert hmp.execute(machine, f"memsave 0x1000 2 {tmp_path}/v") == ""
    assert (tmp_path / "v").read_bytes() == b"\x90\x90"
    assert "at most" in hmp.execute(machine, f"memsave 0 {1 << 40} {tmp_path}/v")


def test_a_chosen_processor_stays_chosen(machine: FakeMachine) -> None:
    machine.cpus = lambda: 2  # type: ignore[method-assign]
    session = hmp.Session(machine)
    assert session.execute("cpu 1") == ""
    assert session.execute("info registers") == "\nCPU#1\nRIP=000000000000fff1\n"


def test_saved_states(machine: FakeMachine) -> None:
    assert hmp.execute(machine, "info snapshots") == "There is no snapshot available.\n"
    for _ in range(2):  # the second replaces the first
        assert hmp.execute(machine, "savevm before") == ""
    lines = hmp.execute(machine, "info snapshots").splitlines()
    assert lines[1].split() == ["ID", "TAG", "VM", "SIZE", "DATE", "VM", "CLOCK", "ICOUNT"]
    assert lines[2].split()[:4] == ["1", "before", "2", "MiB"]
    assert lines[2].split()[-1] == "00:01:05.004"
    hmp.execute(machine, "loadvm before")
    hmp.execute(machine, "delvm before")
    assert machine.vm_snapshots() == []


def test_screen_and_input(machine: FakeMachine, tmp_path: Path) -> None:
    hmp.execute(machine, f"screendump {tmp_path}/a.png")
    assert (tmp_path / "a.png").read_bytes() == encode_png(machine.screen.picture)
    hmp.execute(machine, "sendkey ctrl-alt-f1 0")
    assert machine.input.typed() == ["ctrl", "alt", "f1"]
    hmp.execute(machine, "mouse_move 3 -4")
    hmp.execute(machine, "mouse_button 6")
    assert machine.input.moves == [(3, -4, 0)]
    assert machine.input.buttons == [0b110]


def test_completion() -> None:
    assert hmp.completions("sys") == ["system_powerdown", "system_reset", "system_wakeup"]
    assert hmp.completions("info b") == ["block", "block-jobs", "blockstats"]
    assert hmp.completions("stop x") == []


def test_the_prompt(machine: FakeMachine) -> None:
    target = io.StringIO()
    Prompt(machine, io.StringIO("info status\nquit\nstop\n"), target).run()
    assert target.getvalue().endswith("(vdisk) VM status: running\n(vdisk) ")
    assert machine.calls == ["quit"]
    Prompt(machine, io.StringIO("stop"), io.StringIO()).run()
    assert machine.calls == ["quit", "stop"]
