"""What a person may type, and what is said."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

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
    ],
)
def test_what_is_said(machine: FakeMachine, line: str, said: str) -> None:
    assert hmp.execute(machine, line) == said


def test_an_open_quote(machine: FakeMachine) -> None:
    assert "unterminated" in hmp.execute(machine, 'eject "')
    assert "too long" in hmp.execute(machine, "x" * 5000)


def test_running(machine: FakeMachine) -> None:
    for line in ("s", "c", "system_reset", "system_powerdown", "nmi", "q"):
        assert hmp.execute(machine, line) == ""
    assert machine.calls == ["stop", "cont", "reset", "powerdown", "nmi", "quit"]
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
    assert hmp.completions("sys") == ["system_powerdown", "system_reset"]
    assert hmp.completions("info b") == ["block", "blockstats"]
    assert hmp.completions("stop x") == []


def test_the_prompt(machine: FakeMachine) -> None:
    target = io.StringIO()
    Prompt(machine, io.StringIO("info status\nquit\nstop\n"), target).run()
    assert target.getvalue().endswith("(vdisk) VM status: running\n(vdisk) ")
    assert machine.calls == ["quit"]
    Prompt(machine, io.StringIO("stop"), io.StringIO()).run()
    assert machine.calls == ["quit", "stop"]
