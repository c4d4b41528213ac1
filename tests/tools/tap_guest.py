"""The kernel of this machine in a network namespace of its own, whose one card is a TAP.

:class:`Namespace` hands the TAP over: a machine's card may be behind it.  :class:`TapGuest` makes
the kernel a guest of the user-mode network: what it sends goes to ``UserNetwork.receive``, and
back.  Frames have the header that virtio-net has, so that large segments and incomplete checksums
pass, too.  Needs root and /dev/net/tun.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.tools.patience import PATIENCE
from vdisk.vm.clock import RealClock
from vdisk.vm.devices.virtio_net import offload_header
from vdisk.vm.net.user import UserNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
HEADER = struct.Struct("<BBHHHH")
NAME = b"guest0"
OFFLOAD, HEADERS, PLAIN = "offload", "headers", "plain"

CHILD = """
import fcntl, os, socket, struct, subprocess, sys
sys.path.insert(0, os.getcwd())
from tests.tools import tap_guest
tap_guest.child(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3:])
"""
GUEST_SETUP = ("addr add 10.0.2.15/24 dev guest0", "route add default via 10.0.2.2")


def open_tap(kind: str) -> int:
    """A TAP of the present network namespace: with ``offload``, ``headers`` only, or ``plain``."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = IFF_TAP | IFF_NO_PI | (0 if kind == PLAIN else IFF_VNET_HDR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", NAME, flags))
    if kind != PLAIN:
        fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", HEADER.size))
    if kind == OFFLOAD:
        fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return descriptor


def check_possible() -> None:
    """Skip the test, saying why, where there can be no namespace or no TAP."""
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", "import os; os.open('/dev/net/tun', os.O_RDWR)"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("needs root, network namespaces and /dev/net/tun")


def child(channel: socket.socket, kind: str, setup: Sequence[str]) -> None:
    """In the namespace: hand the TAP over, then run what is asked for, a Python text at a time."""
    tap = open_tap(kind)
    for words in ("link set lo up", f"link set {NAME.decode()} up", *setup):
        subprocess.run(["ip", *words.split()], check=True)
    channel.sendmsg([b"t"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap]))])
    os.close(tap)
    while code := channel.recv(1 << 16):
        names: dict[str, Any] = {}
        try:
            exec(code, names)
            result = repr(names.get("result"))
        except Exception as error:
            result = repr(f"{type(error).__name__}: {error}")
        channel.send(result.encode())


class Namespace:
    """``setup``: words for ip(8).  ``kind``: see :func:`open_tap`.

    ``tap``: the descriptor, which is closed with the namespace.
    """

    def __init__(self, setup: Sequence[str], kind: str = OFFLOAD) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        ours.settimeout(60)
        words = [sys.executable, "-c", CHILD, str(theirs.fileno()), kind, *setup]
        self._process = subprocess.Popen(["unshare", "-n", *words], pass_fds=[theirs.fileno()])
        theirs.close()
        _, ancillary, _, _ = ours.recvmsg(1, 64)
        (self.tap,) = array.array("i", ancillary[0][2])

    def run(self, code: str) -> Any:
        """Run Python in the namespace; what it left in ``result``."""
        self._channel.send(code.encode())
        return eval(self._channel.recv(1 << 20))

    def end(self) -> None:
        """End the process, not yet the TAP."""
        self._channel.close()
        self._process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()
        os.close(self.tap)


class TapGuest:
    """``with TapGuest(...) as guest: guest.run("import socket …; result = …")``.

    ``drop_every``: so often a frame to the guest is lost, as where its ring is full.
    """

    completes_checksums = True
    mac = b"\x02\0\0\0\0\1"

    def __init__(self, *, offload: bool = True, drop_every: int = 0, **options: Any) -> None:
        self._lock = threading.RLock()
        self._clock = RealClock(self._lock)
        self.network = UserNetwork(self._clock, self._lock, **options)
        self.completes_checksums = offload
        self.frames = 0
        self._drop_every = drop_every
        self._namespace = Namespace(GUEST_SETUP, OFFLOAD if offload else HEADERS)
        self._tap = self._namespace.tap
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._pump)

    # what the network sees

    room = True

    def largest_segment(self, *, ipv6: bool) -> int:
        return 60 << 10 if self.completes_checksums else 1460

    def deliver(self, frame: bytes, *, partial: bool = False, segment: int = 0) -> None:
        self.frames += 1
        if self._drop_every and self.frames % self._drop_every == 0:
            return
        header = offload_header(frame, partial=partial, segment=segment)
        os.write(self._tap, header + frame)

    def _pump(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._tap], [], [], 0.1)[0]:
                continue
            try:
                frame = os.read(self._tap, 1 << 17)
            except BlockingIOError:
                continue
            with self._lock:
                self.network.receive(frame[HEADER.size :])

    # what a test does

    def run(self, code: str) -> Any:
        """Run Python in the namespace; what it left in ``result``."""
        return self._namespace.run(code)

    def __enter__(self) -> TapGuest:
        with self._lock:
            self.network.attach(self)
        self._clock.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._namespace.end()
        self._ended.set()
        self._thread.join()
        self._clock.stop()
        self.network.close()
        os.close(self._tap)
