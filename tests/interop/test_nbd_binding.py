"""libnbd 1.14's Python binding asks our server and qemu-nbd 7.2 the same: the answers are alike.

What is asked in the negotiation (lists, queries of meta contexts, descriptions), and block status
of three contexts at once.  What the two may do differently is left out: how many extents one
answer has, room that a file has inside a cluster, errors of requests of no bytes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.interop.test_nbd_server import nbdsh_environment
from tests.tools import nbd_server, peers, qemu
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("nbdsh", "qemu-nbd", "qemu-img", "qemu-io")

SCRIPT = """
import json, os
answers = {}

def ask(name, call, *arguments):
    try:
        answers[name] = call(*arguments)
    except nbd.Error as error:
        answers[name] = f"error {error.errno}"

def exports():
    found = []
    h.opt_list(lambda name, description: found.append([name, description]))
    return found

def contexts(*queries):
    found = []
    h.clear_meta_contexts()
    for query in queries:
        h.add_meta_context(query)
    return [h.opt_list_meta_context(lambda name: found.append(name)), sorted(found)]

def description(name):
    h.set_export_name(name)
    h.opt_info()
    return [h.get_size(), h.is_read_only(), h.can_trim(), h.can_zero(), h.can_cache()]

def status(context, flags):
    runs, at, size = [], 0, h.get_size()
    while at < size:
        told = []
        def hear(name, offset, entries, error):
            if name == context:
                told.extend(zip(entries[::2], entries[1::2]))
        h.block_status(size - at, at, hear, flags)
        assert told and (len(told) == 1 or not flags), told
        for length, state in told:
            length = min(length, size - at)
            at += length
            if runs and runs[-1][1] == state:
                length += runs.pop()[0]
            runs.append([length, state])
    return runs

h.set_opt_mode(True)
h.set_strict_mode(0)
h.connect_uri(os.environ["URI"])
ask("list", exports)
for queries in QUERIES:
    ask(f"contexts {queries}", contexts, *queries)
for name in ("disk", "none", "x" * 4096, "d\\u00e9"):
    ask(f"info {name}", description, name)
ask("list again", exports)
h.set_export_name("none")
ask("go to none", h.opt_go)
h.set_export_name("disk")
h.set_full_info(True)
h.clear_meta_contexts()
for name in CONTEXTS:
    h.add_meta_context(name)
ask("go", h.opt_go)
ask("description", h.get_export_description)
ask("canonical name", h.get_canonical_export_name)
for name in (*CONTEXTS, "qemu:dirty-bitmap:none"):
    ask(f"has {name}", h.can_meta_context, name)
for kind in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM):
    ask(f"block size {kind}", h.get_block_size, kind)
for name in CONTEXTS:
    for flags in (0, nbd.CMD_FLAG_REQ_ONE):
        ask(f"status {name} {flags}", status, name, flags)
size = h.get_size()
for offset, length in ((size, 512), (size - 511, 512), (1 << 62, 512)):
    ask(f"read {offset} {length}", h.pread, length, offset)
    ask(f"status {offset} {length}", h.block_status, length, offset, lambda *_: 0)
ask("fast zero", h.zero, 65536, 65536, nbd.CMD_FLAG_FAST_ZERO)
ask("zero that stays", h.zero, 65536, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
ask("trim", h.trim, 65536, 131072, nbd.CMD_FLAG_FUA)
ask("cache", h.cache, 65536, 0)
ask("read", lambda: h.pread(131072, 0).count(0))
print(json.dumps(answers))
"""

CONTEXTS = ["base:allocation", "qemu:dirty-bitmap:b0", "qemu:allocation-depth"]
QUERIES = [
    [],
    ["base:"],
    ["qemu:"],
    ["qemu:dirty-bitmap:"],
    *([name] for name in CONTEXTS),
    ["qemu:dirty-bitmap:none"],
    ["base:allocation:more"],
    ["x-nosuch:", "qemu:allocation-depth"],
    ["base:allocation", "base:allocation"],
    CONTEXTS,
]


def answers(uri: str) -> dict[str, Any]:
    lists = f"QUERIES, CONTEXTS = {QUERIES!r}, {CONTEXTS!r}\n"
    done = subprocess.run(
        [*peers.command("nbdsh"), "-c", "-"],
        input=(lists + SCRIPT).encode(),
        env=nbdsh_environment(uri),
        capture_output=True,
        timeout=peers.TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("readonly", [True, False])
def test_the_binding_hears_the_same(readonly: bool, tmp_path: Path) -> None:
    base, image = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    qemu.create(base, "4M")
    qemu.io(base, "write 0 2M")
    qemu.create(image, "4M", backing_file="base.qcow2", backing_fmt="qcow2")
    qemu.img("bitmap", "--add", image, "b0")
    qemu.io(image, "write 1M 1536k", "write -z 3M 64k")
    if not readonly:  # one that changes cannot be offered
        qemu.img("bitmap", "--disable", image, "b0")
    flags = ["-A", "-B", "b0", "-D", "a disk", "--discard=unmap"]
    copy = shutil.copy(image, tmp_path / "copy.qcow2")
    with qemu.nbd(image, "qcow2", *flags, export="disk", readonly=readonly) as uri:
        theirs = answers(uri)
    words = [*flags, "-x", "disk", "-f", "qcow2", *(["-r"] if readonly else [])]
    with nbd_server.process(*words, copy) as (socket, _server):
        ours = answers(f"nbd+unix:///disk?socket={socket}")
    if readonly:  # NBD_EPERM is the specification's error here
        for name in ("fast zero", "zero that stays", "trim"):
            assert (ours.pop(name), theirs.pop(name)) == ("error EPERM", "error EINVAL")
        assert (ours.pop("cache"), theirs.pop("cache")) == (None, "error EPERM")
    assert ours == theirs
    assert len(ours) > 40
