"""``vdisk-vm``, the command, as a person and a script use it."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE, connected_to, eventually, free_place
from tests.tools.peers import requires_peer

pytestmark = requires_peer("nasm")
COMMAND = [sys.executable, "-m", "vdisk.cli.vm"]


@pytest.fixture(scope="module", params=guests.accelerators()[-1:])
def accel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """Firmware that says hello, then swaps the case of letters; Escape ends the machine."""
    source = "mov al, '>'\n call putc\n" + guests.ECHO.replace(
        "    xor al, 0x20\n",
        "    cmp al, 27\n    jne swap\n    mov al, 7\n    out 0xf4, al\nswap:\n    xor al, 0x20\n",
    )
    return guests.assemble_bios(tmp_path, source)


def words(accel: str, *arguments: str) -> list[str]:
    return [*COMMAND, "run", "--accel", accel, "-m", "4", *arguments]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        list(arguments), input=stdin, capture_output=True, timeout=PATIENCE, check=False
    )


def test_input_and_output_through_pipes(accel: str, echo: str) -> None:
    done = run(*words(accel, "--bios", echo, "--serial", "stdio"), stdin=b"Hello\x1b")
    assert done.stdout == b">hELLO"
    assert done.returncode == 7 << 1 | 1  # as isa-debug-exit of QEMU
    assert done.stderr == b""


def end_by_serial_line(client: socket.socket, program: subprocess.Popen[bytes]) -> None:
    """Type until the guest of :func:`echo` answers, then end its machine."""
    with client:
        received = b""
        while b"A" not in received:
            client.send(b"a")
            received += client.recv(100)
        client.send(b"\x1b")
        assert program.wait(PATIENCE) == 15


def test_a_serial_line_into_a_file_and_at_a_socket(accel: str, echo: str, tmp_path: Path) -> None:
    path = tmp_path / "com2"
    program = subprocess.Popen(
        words(accel, "--bios", echo, "--serial", f"unix:{path}", "--serial", f"{tmp_path}/log")
    )
    try:
        end_by_serial_line(connected_to(path), program)
    finally:
        program.kill()
        program.wait()
    assert (tmp_path / "log").read_bytes() == b""
    assert not path.exists()


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.program = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave)
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        while text not in self.seen:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.split(text, 1)[1]

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(accel: str, echo: str) -> Iterator[Terminal]:
    found = Terminal(words(accel, "--bios", echo, "--serial", "stdio"))
    yield found
    found.close()


def test_a_raw_terminal_gives_ctrl_c_to_the_guest_and_ctrl_a_x_to_us(terminal: Terminal) -> None:
    terminal.wait_for(b"Ctrl-A X ends")
    terminal.wait_for(b">")
    terminal.type(b"\x03q\x01\x01")
    terminal.wait_for(b"\x23Q\x21")  # ^C, q and ^A with bit 5 changed
    terminal.type(b"\x01h")
    terminal.wait_for(b"this help")
    terminal.type(b"\x01x")
    assert terminal.program.wait(PATIENCE) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_signal_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.wait_for(b">")
    terminal.program.send_signal(signal.SIGTERM)
    assert terminal.program.wait(PATIENCE) == 128 + signal.SIGTERM
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_ctrl_c_ends_a_machine_without_a_terminal(accel: str, echo: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = subprocess.Popen(
        words(accel, "--bios", echo, "--serial", str(log)), stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert eventually(lambda: log.exists() and log.read_bytes() != b"")
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=PATIENCE)
    assert (program.returncode, errors) == (130, b"")


def test_a_screenshot_of_our_bios(accel: str, tmp_path: Path) -> None:
    picture = tmp_path / "screen.png"
    done = run(
        *COMMAND, "screenshot", "--accel", accel, "-m", "16", "-o", str(picture),
        "--until-text", "No bootable device",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_qmp_ends_a_machine(accel: str, tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    program = subprocess.Popen(words(accel, "--display", "none", "--qmp", f"unix:{path}"))
    try:
        with connected_to(path) as client:
            answers = client.makefile("rb")
            assert b"QMP" in answers.readline()
            for command in (b"qmp_capabilities", b"query-status", b"quit"):
                client.send(b'{"execute": "%s"}\n' % command)
                answer = answers.readline()
                while b"return" not in answer:
                    answer = answers.readline()
                if command == b"query-status":
                    assert b'"running"' in answer
        assert program.wait(PATIENCE) == 0
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere.qcow2"], "Could not open '/nowhere.qcow2': No such file"),
        (["--disk", "x,if=scsi"], "a disk is on ide or on virtio"),
        (["--disk", "x,speed=9"], "has no option 'speed'"),
        (["--memory", "lots"], "lots"),
        (["--cpus", "0"], "0 processors"),
        (["--initrd", "x"], "needs a kernel"),
        (["--kernel", "x", "--bios", "y"], "leave bios out"),
        (["--kernel", "/etc/passwd"], "neither a Linux kernel"),
        (["--display", "window"], "one of none, text, vnc, web"),
        (["--display", "text", "--serial", "stdio"], "one of them can have the terminal"),
        (["--vga", "none", "--display", "vnc"], "without a video card"),
        (["--vga-size", "1280"], "WIDTHxHEIGHT"),
        (["--vga-size", "4096x2160"], "at most 2560x1600"),
        (["--net", "bridge"], "network 'bridge'"),
        (["--net", "user,dns=1.1.1.1"], "no option 'dns'"),
        (["-device", "e1000"], "no device 'e1000' here: virtio-blk-pci"),
        (["-device", "virtio-blk-pci,drive=d"], "no such -drive with if=none"),
        (["-device", "virtio-rng-pci,rate=1"], "no option 'rate'"),
        (["-device", "isa-debug-exit"], "iobase=0xf4"),
        (["-drive", "file=x,if=none"], "needs an id"),
        (["-drive", "file=x,if=none,id=d"], "no -device uses 'd'"),
        (["-netdev", "user"], "user,id=NAME"),
        (["--loadvm", "x"], "no writable qcow2 disk"),
        (["--record", "/nowhere/journal", "--accel", "interp"], "/nowhere/journal: cannot write"),
        (["--replay", "/etc/passwd", "--accel", "interp"], "not a journal"),
        (["--qmp", "nonsense", "--display", "none"], "is no address"),
        (["--display", "vnc=:99999"], "there is no port"),
        (["--bios", "/etc/passwd"], "not whole 64 KiB"),
        (["--boot", "x"], "boot order 'x'"),
        (["-smp", "2,corse=2"], "no option 'corse'"),
        (["-rtc", "base=noon"], "utc, localtime, seconds"),
        (["-display", "gtk"], "one of none, text, vnc, web"),
        (["-vnc", ":1,password=on"], "--password-file"),
        (["-vnc", "127.0.0.1:1,share=all"], "share"),
        (["-qmp", "unix:x,server=off"], "waits for nobody"),
        (["-nographic", "-serial", "mon:stdio", "-monitor", "stdio"], "have the terminal"),
    ],
)
def test_mistakes_are_one_line(accel: str, arguments: list[str], message: str) -> None:
    done = run(*words(accel, *arguments))
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("vdisk-vm: ") and message in lines[0]


def test_the_monitor_by_ctrl_a_c_and_back(terminal: Terminal) -> None:
    terminal.wait_for(b">")
    terminal.type(b"\x01c")
    terminal.wait_for(b"(vdisk) ")
    terminal.type(b"info status\r")
    terminal.wait_for(b"VM status: running")
    terminal.type(b"info block-jo\t\r")
    terminal.wait_for(b"No active jobs")
    terminal.wait_for(b"(vdisk) ")
    terminal.type(b"half a line\x01c")
    for key in (b"q", b"r"):  # the terminal may still be the monitor's
        terminal.type(key)
    terminal.wait_for(b"QR")
    terminal.type(b"\x01C")
    terminal.wait_for(b"(vdisk) ")
    terminal.type(b"\x01x")
    assert terminal.program.wait(PATIENCE) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_what_the_guest_says_while_one_is_at_the_monitor_comes_later(
    accel: str, tmp_path: Path
) -> None:
    source = """
again:
    mov al, '.'
    call putc
    mov dx, 0x2f8
    out dx, al
    mov cx, 0xffff
wait_a_while:
    loop wait_a_while
    jmp again
"""
    bios = guests.assemble_bios(tmp_path, source)
    also = tmp_path / "also"  # what the guest says, while the terminal does not show it
    serial = ["-serial", "mon:stdio", "-serial", f"file:{also}"]
    terminal = Terminal(words(accel, "--bios", bios, "-nographic", *serial))
    try:
        terminal.wait_for(b"...")
        terminal.type(b"\x01c")
        terminal.wait_for(b"(vdisk) ")
        said = also.stat().st_size
        assert eventually(lambda: also.stat().st_size >= said + 3)
        terminal.type(b"stop\r")
        terminal.wait_for(b"(vdisk) ")
        assert b"." not in terminal.seen
        terminal.type(b"\x04")
        terminal.wait_for(b"...")
        terminal.program.send_signal(signal.SIGTERM)
        assert terminal.program.wait(PATIENCE) == 128 + signal.SIGTERM
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


def test_a_machine_that_ends_takes_its_monitor_along(accel: str, tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    terminal = Terminal(
        words(
            accel, "-display", "none", "-monitor", "stdio", "-monitor", f"unix:{path},server,nowait"
        )
    )
    try:
        terminal.wait_for(b"(vdisk) ")
        with connected_to(path) as client:
            client.send(b"\xff\xfd\x01info name\r\nquit\n")
            said = b""
            while data := client.recv(4096):
                said += data
        assert b"(vdisk) vdisk\r\n(vdisk) " in said
        assert terminal.program.wait(PATIENCE) == 0
    finally:
        terminal.close()


def test_qemus_words(accel: str, echo: str, tmp_path: Path) -> None:
    for name in ("disk", "hda"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    line = (
        f"-accel {accel} -m 4 -smp cpus=1,sockets=1 -bios {echo} -drive file={tmp_path}/disk,"
        f"if=virtio,format=raw,snapshot=on -hda {tmp_path}/hda -rtc base=2001-02-03T04:05:06 "
        f"-serial stdio -monitor none -vnc none -no-reboot -name guest"
    )
    done = run(*COMMAND, "run", *line.split(), stdin=b"Hello\x1b")
    assert (done.stdout, done.returncode, done.stderr) == (b">hELLO", 15, b"")


def test_a_client_that_reads_late_misses_nothing(accel: str, tmp_path: Path) -> None:
    source = """
wait_for_it:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz wait_for_it
    mov cx, 20000
again:
    mov al, 'x'
    call putc
    loop again
    mov al, 7
    out 0xf4, al
"""
    path = tmp_path / "line"
    bios = guests.assemble_bios(tmp_path, source)
    program = subprocess.Popen(words(accel, "--bios", bios, "--serial", f"unix:{path}"))
    try:
        with connected_to(path) as client:
            client.send(b"go")
            time.sleep(1)
            said = b""
            while data := client.recv(4096):
                said += data
        assert said == b"x" * 20000
        assert program.wait(PATIENCE) == 15
    finally:
        program.kill()
        program.wait()


def test_qemus_devices(accel: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    drives = " ".join(
        f"-drive file={tmp_path}/{name},if=none,id={name},format=raw" for name in ("a", "b", "c")
    )
    line = (
        f"{drives} -device virtio-blk-pci,drive=a,serial=S1 "
        "-device ide-hd,drive=b,bus=ide.1,unit=1 -device ide-cd,drive=c "
        "-netdev user,id=n,hostfwd=tcp::0-:22 -monitor stdio "
        "-device virtio-net-pci,netdev=n -device virtio-rng-pci -device isa-debug-exit,iobase=0xf4"
    )
    done = run(*words(accel, *line.split()), stdin=b"info block\ninfo network\ninfo pci\nquit\n")
    said = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    for name in ("virtio0 (#virtio0): {}/a (raw)", "ide1-hd1 (#ide1-hd1): {}/b (raw)"):
        assert name.format(tmp_path) in said
    assert f"ide1-cd0 (#ide1-cd0): {tmp_path}/c (raw, read-only)" in said
    assert "-> the guest:22" in said
    for device in ("1af4:1005", "1af4:1000", "1af4:1001"):
        assert device in said.lower()


def test_a_serial_line_at_a_tcp_port(accel: str, echo: str) -> None:
    host, port = free_place()
    program = subprocess.Popen(
        words(accel, "--bios", echo, "--serial", f"tcp:{host}:{port},server=on,wait=off")
    )
    try:
        end_by_serial_line(connected_to((host, port)), program)
    finally:
        program.kill()
        program.wait()
