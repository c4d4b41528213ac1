"""Linux behind a TAP of this host, which is in a network namespace of its own."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import guests
from tests.tools.peers import requires_peer
from tests.tools.tap_guest import PLAIN, Namespace, check_possible
from vdisk.vm import Machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [
    requires_peer("ip", "unshare", "setpriv", "apt-get", "dpkg-deb"),
    pytest.mark.timeout(600),
]
MIB = 1 << 20
SIZE = 4 * MIB
BOOT_SECONDS, COMMAND_SECONDS = 300, 60
HOST, GUEST = "10.9.8.1", "10.9.8.2"
SETUP = (f"addr add {HOST}/24 dev guest0",)
MAC = "52:54:00:ab:cd:ef"
DIGEST = hashlib.md5(random.Random(5).randbytes(SIZE // 2).hex().encode()).hexdigest()
CARRIER = "/sys/class/net/eth0/carrier"
PACKETS = "/sys/class/net/eth0/statistics/{}_packets"

SERVER = f"""
import hashlib, http.server, random, threading
DATA = random.Random(5).randbytes({SIZE} // 2).hex().encode()
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def do_GET(self):
        self.answer(DATA)
    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(hashlib.md5(content).hexdigest().encode())
    def log_message(self, *words):
        pass
server = http.server.ThreadingHTTPServer(("{HOST}", 80), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""
CALL = f"""
import socket, time
for _ in range(300):
    try:
        with socket.create_connection(("{GUEST}", 7), 30) as sock:
            result = b"".join(iter(lambda: sock.recv(100), b""))
        break
    except ConnectionRefusedError:  # the guest has not begun to listen
        time.sleep(0.1)
"""
DELETE = "import subprocess; subprocess.run('ip link del guest0'.split(), check=True)"


@pytest.fixture(autouse=True)
def _possible() -> None:
    check_possible()


def linux(namespace: Namespace, more: str = "", **options: object) -> Machine:
    guest = guests.guest(modules=("virtio_pci", "virtio_net", "virtio_blk"))
    return Machine(
        memory=128 * MIB, accel="llvm", kernel=guest.kernel, initrd=guest.initrd,
        append=guests.APPEND, network=f"tap,fd={namespace.tap},mac={MAC}{more}", **options,
    )  # type: ignore[arg-type]  # fmt: skip


def connected(machine: Machine) -> guests.Shell:
    shell = guests.Shell(machine, COMMAND_SECONDS).start(BOOT_SECONDS)
    shell.run(f"ip link set lo up; ip addr add {GUEST}/24 dev eth0; ip link set eth0 up")
    return shell


def pings(shell: guests.Shell) -> None:
    """The neighbour's address may have to be asked for again, so one may take a second."""
    assert ", 0% packet loss" in shell.run(f"ping -c 3 -W 10 {HOST}")


def packets(shell: guests.Shell, way: str) -> int:
    return int(shell.run(f"cat {PACKETS.format(way)}").split()[0])


def test_linux_reaches_the_host_and_is_reached() -> None:
    with Namespace(SETUP) as namespace, linux(namespace) as machine:
        shell = connected(machine)
        assert shell.run("cat /sys/class/net/eth0/address").startswith(MAC)
        namespace.run(SERVER)
        pings(shell)
        before = packets(shell, "rx"), packets(shell, "tx")
        assert DIGEST in shell.run(f"wget -q -O /tmp/data http://{HOST}/; md5sum /tmp/data")
        assert DIGEST in shell.run(f"wget -q -O - --post-file=/tmp/data http://{HOST}/")
        after = packets(shell, "rx"), packets(shell, "tx")
        # each way SIZE bytes went in segments larger than an Ethernet frame
        assert all(now - then < SIZE / 1500 for now, then in zip(after, before, strict=True))
        machine.serial[0].send("echo called | nc -l -p 7 &\n")
        machine.run_until(serial="# ", timeout=COMMAND_SECONDS)
        assert namespace.run(CALL) == b"called\n"
        namespace.run(DELETE)
        shell.run(f"for second in $(seq 50); do grep -q 0 {CARRIER} && break; sleep 1; done")
        assert shell.run(f"cat {CARRIER}").startswith("0")
        assert machine.control.network() == ["net0: tap, ifname=guest0, which was deleted"]
        shell.power_off()


def test_without_offloads_saved_loaded_and_reset(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    vdisk.create(image, 16 * MIB, format="qcow2")
    disk = f"{image},if=virtio"
    with (
        Namespace(SETUP, PLAIN) as namespace,
        linux(namespace, disks=[disk]) as machine,
    ):
        shell = connected(machine)
        namespace.run(SERVER)
        pings(shell)
        before = packets(shell, "rx")
        machine.save("live")
        assert DIGEST in shell.run(f"wget -q -O - http://{HOST}/ | md5sum")
        assert packets(shell, "rx") - before > SIZE / 1500
        machine.load("live")
        assert packets(shell, "rx") < before + 20
        pings(shell)
        machine.reset()
        pings(connected(machine))
        machine.stop()


# -- opened by name ----------------------------------------------------------------------------

PROGRAM = [sys.executable, "-m", "vdisk.cli.vm", "run", "--accel", "interp", "--display", "none"]
UNPRIVILEGED = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]


def in_namespace(network: str, before: str = "true", words: Sequence[str] = ()) -> tuple[int, str]:
    """Run ``vdisk-vm`` in a network namespace after a command there; its status and words."""
    program = [*words, *PROGRAM, "-m", "4", "--monitor", "stdio", "--net", network]
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", f'{before}; exec "$@"', "sh", *program],
        input=b"info network\nquit\n", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("words", [(), UNPRIVILEGED], ids=["root", "unprivileged"])
def test_an_interface_that_is_there_already(words: Sequence[str]) -> None:
    status, said = in_namespace(
        "tap,ifname=mine,vnet_hdr=off,script=no,downscript=no,vhost=off",
        "ip tuntap add dev mine mode tap user 0",
        words,
    )
    assert status == 0 and "net0: tap, ifname=mine\n" in said


def test_an_interface_that_the_kernel_names() -> None:
    status, said = in_namespace("tap")
    assert status == 0 and "net0: tap, ifname=tap0\n" in said


@pytest.mark.parametrize(
    ("network", "before", "words", "message"),
    [
        ("tap,ifname=new", "true", UNPRIVILEGED, "Could not open 'new': a TAP needs the capab"),
        ("tap,ifname=lo", "true", [], "Could not open 'lo': it is there already and is no"),
        ("tap,ifname=many", "ip tuntap add dev many mode tap multi_queue", [], "multi_queue"),
        ("tap,fd=0", "true", [], "fd=0 is no open TAP"),
        ("tap,fd=99", "true", [], "fd=99 is no open TAP: Bad file descriptor"),
    ],
    ids=str,
)
def test_what_cannot_be_opened(
    network: str, before: str, words: Sequence[str], message: str
) -> None:
    status, said = in_namespace(network, before, words)
    assert status == 1 and said.startswith("vdisk-vm: ") and message in said
    assert said.count("\n") == 1


def test_an_interface_that_another_program_uses() -> None:
    program = [*PROGRAM, "--net", "tap,ifname=guest0"]
    code = f"import subprocess; result = subprocess.run({program}, capture_output=True).stderr"
    with Namespace(SETUP) as namespace:
        assert b"Could not open 'guest0': another program uses it" in namespace.run(code)
