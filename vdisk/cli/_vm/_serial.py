"""Where the serial lines of a machine lead: the terminal, files, sockets.

On a terminal the line is raw, so that Ctrl-C and the arrow keys reach the guest; Ctrl-A is the
key for this side, as in QEMU: Ctrl-A X ends the machine, Ctrl-A C leads to the monitor and from
there back, Ctrl-A Ctrl-A is one Ctrl-A.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from vdisk.cli._vm._address import listening_address
from vdisk.cli.options import complain
from vdisk.errors import InvalidRequestError, VdiskError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from vdisk.vm import Machine
    from vdisk.vm._machine.console import SerialConsole
    from vdisk.vm.display.serving import Address
    from vdisk.vm.monitor.prompt import Prompt

ESCAPE = 0x01
HINT = "The terminal is the guest's serial line; Ctrl-A X ends the machine, Ctrl-A H helps.\r\n"
HELP = (
    "\r\nCtrl-A X: end the machine   Ctrl-A C: the monitor and back   "
    "Ctrl-A Ctrl-A: type Ctrl-A   Ctrl-A H: this help\r\n"
)
CHUNK = 4096
BACKLOG = 1 << 20
"""Bytes that wait for a client at a socket: hours of a guest that nobody listens to."""
LAST_WORDS_SECONDS = 1
REFUSED = "the guest does not read its serial line: input is lost"


class Lines:
    """Connects ``targets`` to COM1…: ``stdio`` (``mon:stdio``, as QEMU calls a terminal with the
    monitor), ``none``, ``unix:PATH``, ``tcp:HOST:PORT``, ``file:PATH`` or a path."""

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
        if target in {"stdio", "mon:stdio"}:
            self.stdio = console
        elif target.startswith(("unix:", "tcp:", "telnet:")):
            self._listen(console, listening_address(target))
        else:
            self._closers.append(write_to_file(console, target.removeprefix("file:")))

    def _listen(self, console: SerialConsole, address: Address) -> None:
        """A socket; one client at a time."""
        server = socket.socket(socket.AF_UNIX) if address.path else None
        try:
            if server is None:
                server = socket.create_server((address.host, address.port), backlog=1)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address.path)
                server.bind(address.path)
                server.listen(1)
                self._closers.append(lambda: _remove(address.path))
        except OSError as error:
            if server is not None:
                server.close()
            raise from_os_error(error, path=str(address), operation="listen") from error
        self._closers.append(_SocketLine(console, server).close)

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
    """A serial line at a listening socket.

    What the guest sends is written by a thread: a socket has room for a few hundred bytes that
    come one by one, which a client that is not scheduled for a moment would miss.
    """

    def __init__(self, console: SerialConsole, server: socket.socket) -> None:
        self._console = console
        self._server = server
        self._client: socket.socket | None = None
        self._pending = bytearray()
        self._changed = threading.Condition()
        self._closing = self._writing = False
        console.tap(self._send)
        for work in (self._serve, self._write):
            threading.Thread(target=work, name="vdisk-serial", daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                client.setblocking(True)
                with self._changed:
                    self._pending.clear()
                    self._client = client
                with contextlib.suppress(OSError), client:
                    while data := client.recv(CHUNK):
                        with contextlib.suppress(VdiskError):
                            self._console.send(data)
                with self._changed:
                    self._client = None

    def _send(self, data: bytes) -> None:
        """Called with the bus lock held; beyond the backlog, what is not read is lost."""
        with self._changed:
            if self._client is not None and len(self._pending) < BACKLOG:
                self._pending += data
                self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._pending or self._closing)
                if self._closing:
                    return
                data, client = bytes(self._pending), self._client
                self._pending.clear()
                self._writing = True
            if client is not None:
                with contextlib.suppress(OSError):
                    client.sendall(data)

    def close(self) -> None:
        with self._changed:  # a client that still reads gets the last words
            self._changed.wait_for(lambda: not (self._pending or self._writing), LAST_WORDS_SECONDS)
            self._closing = True
            self._changed.notify_all()
            client = self._client
        for each in (self._server, client):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()


class RawTerminal:
    """Standard input as a raw terminal inside a ``with`` block; anything else as it is."""

    def __init__(self) -> None:
        self.active = sys.stdin.isatty()
        self._saved: list[Any] = []

    def __enter__(self) -> Self:
        if self.active:
            import termios

            self._saved = termios.tcgetattr(0)
            self._make_raw()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.active:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self._saved)

    @contextlib.contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Not raw for a while."""
        self.__exit__()
        try:
            yield
        finally:
            self._make_raw()

    @staticmethod
    def _make_raw() -> None:
        import termios
        import tty

        tty.setraw(0, termios.TCSANOW)


def talk(machine: Machine, console: SerialConsole, *, start: bool) -> None:
    """Send what is typed to the guest until the machine ends, or Ctrl-A X ends it.

    ``start``: start the machine, once the terminal is the guest's: what is typed at its first
    prompt must not be the shell's any more.
    """
    line = _TerminalLine(machine, console)
    waiter = threading.Thread(target=line.wait, daemon=True)
    waiter.start()
    try:
        with RawTerminal() as line.terminal:
            if line.terminal.active:
                sys.stderr.write(HINT)
                sys.stderr.flush()
            if start:
                machine.start()
            line.run()
    finally:
        machine.stop()
        waiter.join()
        line.close()


class _TerminalLine:
    """What is typed: for the guest, or, after Ctrl-A, for us; what the guest sends is shown."""

    def __init__(self, machine: Machine, console: SerialConsole) -> None:
        self.terminal = RawTerminal()
        self._machine, self._console = machine, console
        self._wake_read, self._wake_write = os.pipe()
        self._escaped = False
        self._held = False  # the monitor has the terminal
        self._prompt: Prompt | None = None
        self._changing = threading.Lock()
        self._over = False
        console.tap(self._show)

    def wait(self) -> None:
        """In a thread: tell the others when the machine has ended."""
        self._machine.wait()
        os.write(self._wake_write, b".")
        with self._changing:
            self._over = True
            if self._prompt is not None:
                self._prompt.stop()

    def close(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            with contextlib.suppress(OSError, ValueError):  # a file, or closed: nothing to wait for
                selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._wake_read in ready:
                    return
                data = os.read(sys.stdin.fileno(), CHUNK)
                if not data:
                    selector.unregister(sys.stdin.fileno())
                elif not self._take(data):
                    return

    def _show(self, data: bytes) -> None:
        """Called with the bus lock held."""
        if not self._held:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

    def _take(self, data: bytes) -> bool:
        """False when the user ends the machine."""
        typed = bytearray()
        for byte in data:
            if self.terminal.active and self._escaped:
                self._escaped = False
                if byte in b"xX":
                    return False
                if byte in b"cC":
                    self._at_monitor()
                elif byte in b"hH?":
                    sys.stderr.write(HELP)
                elif byte == ESCAPE:
                    typed.append(byte)
            elif self.terminal.active and byte == ESCAPE:
                self._escaped = True
            else:
                typed.append(byte)
        if typed:
            try:
                self._console.send(bytes(typed))
            except InvalidRequestError:
                complain(REFUSED)
        return True

    def _at_monitor(self) -> None:
        """The monitor, on a terminal as it was; what the guest sends meanwhile is shown later."""
        from vdisk.vm.monitor.prompt import Prompt

        with self._changing:
            if self._over:
                return
            self._prompt = Prompt(self._machine.control, escape=True)
        with self._machine.bus.lock:
            self._held, seen = True, self._console.position
        try:
            with self.terminal.as_it_was():
                print()
                self._prompt.run()
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM, for one
                raise
        finally:
            with self._changing:
                self._prompt = None
            with self._machine.bus.lock:
                self._held = False
                self._show(self._console.output(seen))
