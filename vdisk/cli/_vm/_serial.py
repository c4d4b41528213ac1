"""Where the serial lines of a machine lead: the terminal, files, sockets.

On a terminal the line is raw, so that Ctrl-C and the arrow keys reach the guest; Ctrl-A is the
key for this side, as in QEMU: Ctrl-A X ends the machine, Ctrl-A Ctrl-A is one Ctrl-A.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from vdisk.cli.options import complain
from vdisk.errors import InvalidRequestError, VdiskError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm import Machine
    from vdisk.vm._machine.console import SerialConsole

ESCAPE = 0x01
HINT = "The terminal is the guest's serial line; Ctrl-A X ends the machine.\r\n"
HELP = "\r\nCtrl-A X: end the machine   Ctrl-A Ctrl-A: type Ctrl-A   Ctrl-A H: this help\r\n"
CHUNK = 4096
REFUSED = "the guest does not read its serial line: input is lost"


class Lines:
    """Connects ``targets`` (``stdio``, ``none``, ``file:PATH``, ``unix:PATH``, a path) to COM1…"""

    def __init__(self, machine: Machine, targets: list[str]) -> None:
        self._machine = machine
        self._closers: list[Callable[[], None]] = []
        self.stdio: SerialConsole | None = None
        try:
            for console, target in zip(machine.serial, targets, strict=True):
                self._connect(console, target)
        except BaseException:
            self.close()
            raise

    def _connect(self, console: SerialConsole, target: str) -> None:
        if target in {"none", "null"}:
            return
        if target == "stdio":
            self.stdio = console
            console.tap(_write_stdout)
        elif target.startswith("unix:"):
            self._listen(console, target.removeprefix("unix:"))
        else:
            self._closers.append(write_to_file(console, target.removeprefix("file:")))

    def _listen(self, console: SerialConsole, path: str) -> None:
        """A unix socket; one client at a time."""
        server = socket.socket(socket.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            server.bind(path)
            server.listen(1)
        except OSError as error:
            server.close()
            raise from_os_error(error, path=path, operation="listen") from error
        line = _SocketLine(console, server)
        self._closers += [lambda: _remove(path), line.close]

    def close(self) -> None:
        """Close files and sockets."""
        while self._closers:
            self._closers.pop()()


def write_to_file(console: SerialConsole, path: str) -> Callable[[], None]:
    """Write what the guest sends to a file; gives what closes it."""
    try:
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed with the machine
    except OSError as error:
        raise from_os_error(error, path=path, operation="open") from error

    def tap(data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # full, or closed: the guest goes on
            file.write(data)

    console.tap(tap)
    return file.close


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


class _SocketLine:
    """A serial line at a listening socket."""

    def __init__(self, console: SerialConsole, server: socket.socket) -> None:
        self._console = console
        self._server = server
        self._client: socket.socket | None = None
        console.tap(self._send)
        self._thread = threading.Thread(target=self._serve, name="vdisk-serial", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                client.setblocking(True)
                self._client = client
                with contextlib.suppress(OSError), client:
                    while data := client.recv(CHUNK):
                        with contextlib.suppress(VdiskError):
                            self._console.send(data)
                self._client = None

    def _send(self, data: bytes) -> None:
        """Called with the bus lock held: what a client does not take is lost."""
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.send(data, socket.MSG_DONTWAIT)

    def close(self) -> None:
        for each in (self._server, self._client):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()


def _write_stdout(data: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


class RawTerminal:
    """Standard input as a raw terminal inside a ``with`` block; anything else as it is."""

    def __init__(self) -> None:
        self.active = sys.stdin.isatty()
        self._saved: list[Any] = []

    def __enter__(self) -> RawTerminal:
        if self.active:
            import termios
            import tty

            self._saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSANOW)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.active:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self._saved)


def talk(machine: Machine, console: SerialConsole, *, start: bool) -> None:
    """Send what is typed to the guest until the machine ends, or Ctrl-A X ends it.

    ``start``: start the machine, once the terminal is the guest's: what is typed at its first
    prompt must not be the shell's any more.
    """
    wake_read, wake_write = os.pipe()
    waiter = threading.Thread(
        target=lambda: (machine.wait(), os.write(wake_write, b".")), daemon=True
    )
    waiter.start()
    try:
        with RawTerminal() as terminal, selectors.DefaultSelector() as selector:
            selector.register(wake_read, selectors.EVENT_READ)
            with contextlib.suppress(OSError, ValueError):  # a file, or closed: nothing to wait for
                selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            if terminal.active:
                sys.stderr.write(HINT)
                sys.stderr.flush()
            if start:
                machine.start()
            _Keys(machine, console, raw=terminal.active).loop(selector, wake_read)
    finally:
        machine.stop()
        waiter.join()
        os.close(wake_read)
        os.close(wake_write)


class _Keys:
    """What is typed: for the guest, or, after Ctrl-A, for us."""

    def __init__(self, machine: Machine, console: SerialConsole, *, raw: bool) -> None:
        self._machine, self._console, self._raw = machine, console, raw
        self._escaped = False

    def loop(self, selector: selectors.BaseSelector, wake: int) -> None:
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if wake in ready:
                return
            data = os.read(sys.stdin.fileno(), CHUNK)
            if not data:
                selector.unregister(sys.stdin.fileno())
            elif not self._take(data):
                return

    def _take(self, data: bytes) -> bool:
        """False when the user ends the machine."""
        typed = bytearray()
        for byte in data:
            if self._raw and self._escaped:
                self._escaped = False
                if byte in b"xX":
                    return False
                if byte in b"hH?":
                    sys.stderr.write(HELP)
                elif byte == ESCAPE:
                    typed.append(byte)
            elif self._raw and byte == ESCAPE:
                self._escaped = True
            else:
                typed.append(byte)
        if typed:
            try:
                self._console.send(bytes(typed))
            except InvalidRequestError:
                complain(REFUSED)
        return True
