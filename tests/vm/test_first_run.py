"""A first run of the recompiler: nothing is compiled yet, and somebody may be looking."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools import bootable, guests, small_guests
from tests.tools.patience import eventually
from tests.tools.peers import requires_peer
from vdisk.cli.program import INTERRUPTED
from vdisk.vm import Machine
from vdisk.vm.accel import llvm
from vdisk.vm.accel.interp import InterpAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.cpu.codegen import NativeCode
from vdisk.vm.cpu.common import common_instructions, shapes_of
from vdisk.vm.cpu.known_store import WORTH_KEEPING, InstructionStore
from vdisk.vm.cpu.orders import decoder
from vdisk.vm.memory import GuestMemory

pytestmark = requires_peer("nasm")
PATIENCE = 90
WORDS = [sys.executable, "-m", "vdisk.cli.vm", "run", "--accel", "llvm", "-m", "4", "--display"]
WORDS += ["none", "--serial", "stdio", "--bios"]
TITLE = b"preparing the processor"
MIB = 1 << 20


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Firmware that says > and then ends the machine with the status 7 << 1 | 1."""
    folder = tmp_path_factory.mktemp("bios")
    code = "mov al, '>'\n call putc\n mov al, 7\n out 0xf4, al\n"
    return small_guests.assemble_bios(folder, code + small_guests.ECHO)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With an empty cache."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


class Watched:
    """A program whose standard error is a terminal."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._terminal, other = pty.openpty()
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=other,
            env=environment,
            start_new_session=True,
        )
        os.close(other)
        self.shown = b""

    def until(self, text: bytes) -> None:
        """Read what is shown, until it has a text or nobody shows any more."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown or not text:
            assert select.select([self._terminal], [], [], deadline - time.monotonic())[0]
            try:
                part = os.read(self._terminal, 4096)
            except OSError:  # its other end is closed: that is the end of file
                break
            self.shown += part

    def children(self) -> list[int]:
        """The processes that it has begun."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(word) for task in tasks for word in task.read_text().split()]

    def end(self) -> tuple[bytes, int]:
        """What it wrote, and its status, when it has ended by itself."""
        self.until(b"")
        said, _ = self.process.communicate(timeout=PATIENCE)
        return said, self.process.returncode

    def close(self) -> None:
        os.close(self._terminal)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def watched(words: list[str], environment: dict[str, str]) -> Iterator[Watched]:
    program = Watched(words, environment)
    try:
        yield program
    finally:
        program.close()


def test_it_is_shown_how_far_a_first_run_is(echo: str, environment: dict[str, str]) -> None:
    with watched([*WORDS, echo], environment) as first:
        assert first.end() == (b">", 7 << 1 | 1)
    assert first.shown.count(TITLE) > 2
    assert first.shown.rpartition(b"]")[2].split()[0] == b"100.0%"
    assert first.shown.endswith(b"\r\n")
    with watched([*WORDS, echo], environment) as second:
        assert second.end() == (b">", 7 << 1 | 1)
    assert second.shown == b""


NOT_NEEDED = {"llvmlite.binding", "asyncio", "vdisk.formats.qcow2", "vdisk.vm.cpu.python_sse"}


def test_a_later_run_begins_without_what_it_does_not_need(
    echo: str, environment: dict[str, str]
) -> None:
    shown = [sys.executable, "-X", "importtime", *WORDS[1:], echo]
    loaded: list[set[str]] = []
    for _ in range(2):
        done = subprocess.run(
            shown, env=environment, capture_output=True, timeout=PATIENCE, check=False
        )
        assert (done.stdout, done.returncode) == (b">", 7 << 1 | 1)
        lines = done.stderr.decode().splitlines()
        loaded.append({line.rpartition("|")[2].strip() for line in lines})
    first, later = loaded
    assert {"llvmlite.binding", "vdisk.vm.cpu.ahead"} <= first
    assert "vdisk.vm.accel.llvm" in later
    assert not later & NOT_NEEDED


def test_nothing_is_shown_to_those_who_do_not_look(echo: str, environment: dict[str, str]) -> None:
    with watched([*WORDS, echo, "-q"], environment) as quiet:
        assert quiet.end() == (b">", 7 << 1 | 1)
    assert quiet.shown == b""
    other = {**environment, "XDG_CACHE_HOME": environment["XDG_CACHE_HOME"] + "2"}
    done = subprocess.run(
        [*WORDS, echo], env=other, capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (b">", b"", 7 << 1 | 1)


def test_ctrl_c_ends_it_at_once(echo: str, environment: dict[str, str]) -> None:
    with watched([*WORDS, echo], environment) as first:
        first.until(TITLE)
        children = first.children()
        assert children
        os.killpg(first.process.pid, signal.SIGINT)  # what a terminal does
        assert first.end() == (b"", INTERRUPTED)
        assert b"Traceback" not in first.shown
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    with watched([*WORDS, echo], environment) as second:
        assert second.end() == (b">", 7 << 1 | 1)


def test_two_at_once(echo: str, environment: dict[str, str]) -> None:
    with watched([*WORDS, echo], environment) as one, watched([*WORDS, echo], environment) as other:
        assert one.end() == other.end() == (b">", 7 << 1 | 1)
    with watched([*WORDS, echo], environment) as later:
        assert later.end() == (b">", 7 << 1 | 1)
    assert later.shown == b""


def test_one_that_is_killed_leaves_what_it_made(echo: str, environment: dict[str, str]) -> None:
    cache = Path(environment["XDG_CACHE_HOME"]) / "vdisk"
    with watched([*WORDS, echo], environment) as first:
        first.until(b"%")
        assert eventually(lambda: any(f.stat().st_size > 5_000 for f in cache.glob("code-*.bin")))
        children = first.children()
        first.process.kill()
        first.process.wait(PATIENCE)
        assert eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    (kept,) = cache.glob("code-*.bin")
    size = kept.stat().st_size
    with watched([*WORDS, echo], environment) as second:
        assert second.end() == (b">", 7 << 1 | 1)
    assert kept.stat().st_size > size


def test_one_that_is_killed_leaves_what_it_learned(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    cache = Path(environment["XDG_CACHE_HOME"]) / "vdisk"
    many = f"%assign n 0\n%rep {2 * WORTH_KEEPING}\n mov ax, n\n%assign n n+1\n%endrep\n"
    bios = small_guests.assemble_bios(tmp_path, f"{many} hlt\n")
    with watched([*WORDS, bios], environment) as first:
        assert eventually(lambda: list(cache.glob("instructions-*.bin")))
        first.process.kill()
    (file,) = cache.glob("instructions-*.bin")
    digest = file.stem.removeprefix("instructions-")
    engine = InterpAccelerator(GuestMemory(MIB), Bus())
    InstructionStore(str(cache), digest).load(engine.translator)
    assert engine.arena.known.count >= 2 * WORTH_KEEPING


MISSING = 0.02
"""Of the handlers that a guest needs: more, and bench/common_code.py has to be run again."""


def share_missing(machine: Machine) -> float:
    """How many of a guest's handlers are not made ahead."""
    needed = set(machine.accelerator.translator.shapes)
    return len(needed - set(shapes_of(common_instructions(), decoder))) / len(needed)


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that knows what it has met itself, and nothing of other tests' guests."""
    native = NativeCode(None)
    monkeypatch.setattr(llvm, "native_code", lambda *_: native)


@requires_peer("apt-get", "dpkg-deb")
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("nothing_known")
def test_nearly_all_that_linux_needs_is_made_ahead() -> None:
    kernel, initrd = guests.guest()
    with Machine(accel="llvm", memory=192 * MIB, kernel=kernel, initrd=initrd,
                 append=guests.APPEND) as machine:  # fmt: skip
        machine.start()
        guests.Shell(machine, PATIENCE).start(3 * PATIENCE)
        assert share_missing(machine) < MISSING


@requires_peer("grub-mkrescue", "xorriso")
@pytest.mark.usefixtures("nothing_known")
def test_nearly_all_that_a_boot_loader_needs_is_made_ahead(tmp_path: Path) -> None:
    image = bootable.grub_rescue(tmp_path)
    with Machine(accel="llvm", memory=64 * MIB, cdroms=[str(image)]) as machine:
        machine.start()
        machine.run_until(screen="Second choice", timeout=PATIENCE)
        assert share_missing(machine) < MISSING
