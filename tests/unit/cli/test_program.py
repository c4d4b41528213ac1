"""How ``vdisk`` begins and ends: commands, usage errors, interrupts, its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vdisk
from tests.tools import cli
from vdisk.cli import nbd, vm
from vdisk.cli.main import PROGRAM
from vdisk.cli.options import Parser
from vdisk.cli.program import Program

ROOT = Path(vdisk.__file__).parent.parent


def process(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """``vdisk`` as a process of its own."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-m", "vdisk.cli.main", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8:strict"},
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("command", PROGRAM.commands)
def test_every_command_explains_itself(command: str) -> None:
    shown = cli.run(command, "--help")
    assert shown.startswith(f"usage: vdisk {command} ")
    assert "Traceback" not in shown


EVERY_COMMAND = [
    (program, command)
    for program in (PROGRAM, nbd.PROGRAM, vm.PROGRAM)
    for command in program.commands
]


@pytest.mark.parametrize(
    ("program", "command"), EVERY_COMMAND, ids=lambda each: getattr(each, "name", each)
)
def test_every_option_is_explained(program: Program, command: str) -> None:
    module = program._find(command)
    parser = Parser(prog=f"{program.name} {command}", description=module.__doc__)
    module.configure(parser)
    assert [action.dest for action in parser._actions if not action.help] == []
    assert "\n\nExamples:\n  " in parser.format_help()


def test_paragraphs_fit_the_terminal_and_examples_stay_as_they_are() -> None:
    shown = Parser("prog", f"{'word ' * 39}word\nmore\n\nExamples:\n  {'x' * 90}\n").format_help()
    paragraph, examples = shown.split("\n\n")[1:3]
    assert "word more" in paragraph
    assert max(map(len, paragraph.splitlines())) < 80
    assert examples == f"Examples:\n  {'x' * 90}"


def test_the_overview_lists_every_command() -> None:
    for arguments in (["--help"], ["-h"], ["help"]):
        shown = cli.run(*arguments)
        for command in PROGRAM.commands:
            assert f"\n  {command} " in shown
    assert cli.vdisk().status == 1


def test_version() -> None:
    assert cli.run("--version") == cli.run("-V") == f"vdisk {vdisk.__version__}\n"


def test_a_command_has_the_version_of_the_program() -> None:
    for words in (["info", "--version"], ["map", "-f", "raw", "-V", "absent"]):
        shown = process(*words).communicate(timeout=60)[0]
        assert shown.decode() == f"vdisk {vdisk.__version__}\n"


def test_options_are_listed_for_a_shell_to_complete() -> None:
    long, short = cli.run("convert", "--long-options"), cli.run("convert", "--short-options")
    assert {"--salvage", "--object", "--version"} < set(long.split())
    assert {"-O", "-m", "-V"} < set(short.split())
    assert all(word[:2] != "--" for word in short.split())


def test_unknown_commands_are_guessed_at() -> None:
    assert "did you mean 'convert'?" in cli.fail("covnert")
    assert "--help" in cli.fail("xyzzy")
    assert "--help" in cli.fail("--verbose")


@pytest.mark.parametrize(
    "arguments",
    [
        ["info"],
        ["info", "a", "b"],
        ["info", "--no-such-option", "a"],
        ["info", "--output=xml", "a"],
        ["info", "-f"],
        ["info", "--image-opts", "-f", "raw", "file.filename=a"],
        ["info", "--object", "secret,id=x", "a"],
        ["info", "--object", "secret,data=x", "a"],
        ["info", "--object", "nonsense,id=x", "a"],
        ["info", "--object", "secret,id=x,data=y,format=base64", "a"],
        ["info", "--object", "secret,id=x,file=absent", "a"],
        ["info", "--object", "secret,id=x,data=a", "--object", "secret,id=x,data=b", "a"],
        ["info", "--object", "secret,id=x,data=a,keyid=absent,iv=AA", "a"],
        ["create"],
        ["create", "a", "many"],
        ["create", "a", "1", "2"],
        ["create", "-f", "qcow2", "-b", "x", "-F", "raw", "-o", "backing_file=y", "a", "1M"],
        ["map", "-s", "x", "a"],
        ["snapshot", "-c", "x", "-d", "y", "a"],
        ["snapshot", "-l", "-a", "x", "a"],
        ["resize", "a"],
        ["resize"],
        ["amend", "a"],
        ["amend", "-o", "compat=1.1"],
        ["bitmap", "a", "b"],
        ["bitmap", "--clear", "-g", "64k", "a", "b"],
        ["bitmap", "--clear", "-b", "x", "a", "b"],
        ["bitmap", "--merge", "x", "-F", "raw", "a", "b"],
        ["check", "-r", "some", "a"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.fail(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["info", "map", "check", "snapshot"])
def test_what_cannot_be_opened_is_one_line(command: str, tmp_path: Path) -> None:
    for name in ("absent", ".", "json:{", "foo:bar", "", "a\nb"):
        assert "Traceback" not in cli.fail(command, name)
    short = tmp_path / "short.qcow2"
    short.write_bytes(b"QFI\xfb\0\0\0\x03")
    assert "short.qcow2" in cli.fail(command, short)


def test_bytes_that_are_no_text_do_not_hurt(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.raw")
    assert "\\udcff" in cli.fail("info", path)
    vdisk.create(path, 512)
    assert '\\uFFFD\\uFFFD.raw"' in cli.run("info", "--output=json", path)
    with process("info", path) as running:
        output, errors = running.communicate(timeout=60)
    assert b"\xff\xfe.raw" in output
    assert (running.returncode, errors) == (0, b"")


def test_options_and_names_mix(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    cli.run("create", path, "-q", "1M", "-f", "raw")
    expected = cli.run("info", "--output=json", "-f", "raw", path)
    assert cli.run("info", path, "-fraw", "--output", "json") == expected
    assert cli.run("info", "--out=json", "-f", "raw", "--", path) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_without_a_trace(number: signal.Signals, tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", 1 << 20)
    with process("io", "-f", "raw", str(tmp_path / "disk.raw")) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"length\n")
        running.stdin.flush()
        assert running.stdout.readline()  # it is up and waits for the next command
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert errors == b""


def test_a_closed_pipe_ends_it_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for block in range(2000):
            file.seek(block * 8192)
            file.write(b"x" * 4096)
    with process("map", "--output=json", "-f", "raw", str(path)) as running:
        assert running.stdout is not None
        running.stdout.close()
        running.stdout = None
        _, errors = running.communicate(timeout=60)
    assert errors == b""
    assert running.returncode == 128 + signal.SIGPIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", 512)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vdisk.cli.main", "info", str(tmp_path / "disk.raw")],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"vdisk: ")
    assert done.stderr.count(b"\n") == 1
