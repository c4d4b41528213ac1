"""How long one small request takes: vdisk's blocking NBD client beside libnbd's Python binding.

    python bench/nbd_client.py [--rounds 5] [--requests 4000]

Both read and write 4 KiB at random places of nbdkit's memory plugin over a unix socket, one request
at a time, each in a process of its own, in turns; of the rounds the median counts.  Reported are
wall and CPU time of the client for a request.  libnbd's binding belongs to the system's python3.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOP = """
import random, sys, time
uri, count = sys.argv[1], int(sys.argv[2])
{connect}
places = [random.randrange(4096) * 4096 for _ in range(count)]
data = b"x" * 4096
for operation in (read, write):
    wall, cpu = time.perf_counter(), time.process_time()
    for place in places:
        operation(place)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(wall / count * 1e6, cpu / count * 1e6)
"""
OURS = """
from vdisk.stores.nbd import NbdStore
store = NbdStore(uri, readonly=False)
read = lambda place: store.read(place, 4096)
write = lambda place: store.write(place, data)
"""
THEIRS = """
import nbd
handle = nbd.NBD()
handle.connect_uri(uri)
read = lambda place: handle.pread(4096, place)
write = lambda place: handle.pwrite(data, place)
"""
CLIENTS = {"vdisk": (sys.executable, OURS), "libnbd": ("/usr/bin/python3", THEIRS)}


@contextlib.contextmanager
def server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="vdisk-bench-") as folder:
        socket = Path(folder, "nbd.sock")
        words = ["nbdkit", "-f", "-U", str(socket), "memory", "16M"]
        with subprocess.Popen(words) as process:
            while not socket.exists():
                time.sleep(0.02)
            try:
                yield f"nbd+unix:///?socket={socket}"
            finally:
                process.terminate()


def measure(client: str, uri: str, requests: int) -> list[float]:
    """Wall and CPU microseconds of a read, then of a write."""
    python, connect = CLIENTS[client]
    words = [python, "-c", LOOP.format(connect=connect), uri, str(requests)]
    done = subprocess.run(
        words, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4000)
    options = parser.parse_args()
    results: dict[str, list[list[float]]] = {client: [] for client in CLIENTS}
    with server() as uri:
        for _ in range(options.rounds):
            for client, found in results.items():
                found.append(measure(client, uri, options.requests))
    medians = {
        client: [statistics.median(column) for column in zip(*found, strict=True)]
        for client, found in results.items()
    }
    for index, what in ((0, "read 4 KiB"), (2, "write 4 KiB")):
        ours, theirs = (medians[client][index : index + 2] for client in CLIENTS)
        ratios = " ".join(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))
        print(
            f"{what:12} vdisk {ours[0]:.1f} us, CPU {ours[1]:.1f}; "
            f"libnbd {theirs[0]:.1f} us, CPU {theirs[1]:.1f}; ratio {ratios}"
        )


if __name__ == "__main__":
    main()
