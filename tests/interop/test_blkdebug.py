"""The same fault rules under qemu-io and here: both take them, and both fail by them.

Held against QEMU 7.2.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import cli, peers, qemu
from tests.tools.peers import requires_peer
from vdisk.filters.faults import EVENTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img", "qemu-io")


def qemu_io(config: Path, image: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = peers.run("qemu-io", *words, f"blkdebug:{config}:{image}", check=False)
    return (done.stdout + done.stderr).decode()


def vdisk_io(config: Path, image: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = cli.vdisk("io", *words, f"blkdebug:{config}:{image}")
    return done.stdout + done.stderr


def test_all_events_are_qemus(tmp_path: Path) -> None:
    config, image = tmp_path / "rules", tmp_path / "disk.qcow2"
    vdisk.create(image, 1 << 20, format="qcow2")
    rules = [f'[inject-error]\nevent = "{name}"\nstate = "77"\n' for name in sorted(EVENTS)]
    config.write_text("\n".join(rules))
    for run in (qemu_io, vdisk_io):
        assert "read 512/512" in run(config, image, "read 0 512")
    config.write_text(rules[0].replace(sorted(EVENTS)[0], "lunch"))
    for run in (qemu_io, vdisk_io):
        assert "lunch" in run(config, image, "read 0 512")


RULES = {
    "a full disk at the first allocation": (
        '[inject-error]\nevent = "cluster_alloc"\nerrno = "28"\nonce = "on"\niotype = "write"\n',
        "No space left on device",
    ),
    "an error of data only": (
        '[inject-error]\nevent = "write_aio"\nerrno = "5"\nonce = "on"\niotype = "write"\n',
        "Input/output error",
    ),
    "by a state that is reached": (
        '[set-state]\nevent = "cluster_alloc"\nnew_state = "3"\n\n'
        '[inject-error]\nevent = "write_aio"\nstate = "3"\nerrno = "28"\nonce = "on"\n',
        "No space left on device",
    ),
    "by a state that is not reached": (
        '[inject-error]\nevent = "write_aio"\nstate = "3"\n',
        None,
    ),
    "by a flush": (
        '[inject-error]\nevent = "flush_to_os"\nerrno = "5"\niotype = "flush"\n',
        "Input/output error",
    ),
}


@pytest.mark.parametrize("title", RULES)
def test_the_same_rules_fail_in_the_same_way(tmp_path: Path, title: str) -> None:
    text, message = RULES[title]
    config = tmp_path / "rules"
    config.write_text(text)
    for number, run in enumerate((qemu_io, vdisk_io)):
        image = tmp_path / f"{number}.qcow2"
        vdisk.create(image, 1 << 20, format="qcow2")
        said = run(config, image, "write -P 7 0 64k", "flush")
        if message is None:
            assert "error" not in said and "wrote 65536/65536" in said
        else:
            assert message in said, run
        found = qemu.img("check", image, check=False).returncode
        assert found in (0, 3)


def test_verified_images_and_null_devices(tmp_path: Path) -> None:
    raw, test = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    vdisk.create(raw, 1 << 20)
    vdisk.create(test, 1 << 20, format="qcow2")
    name = f"blkverify:{raw}:{test}"
    assert "wrote 4096" in cli.run("io", "-f", "raw", "-c", "write -P 9 8k 4k", name)
    done = peers.run("qemu-io", "-f", "raw", "-c", "read -P 9 8k 4k", name)
    assert b"read 4096/4096" in done.stdout
    qemu.io(test, "write -P 1 8k 512")
    assert "differs from" in cli.fail("convert", "-f", "raw", name, tmp_path / "copy.raw")
    tree = "driver=null-co,size=1M,read-zeroes=on"
    for words in (("read -P 0 0 1M",), ("write 0 64k", "flush")):
        commands = [word for command in words for word in ("-c", command)]
        assert "ops" in cli.run("io", "--image-opts", *commands, tree)
        peers.run("qemu-io", "--image-opts", *commands, tree)


@pytest.mark.parametrize(
    ("event", "start"), [("write_aio", 0), ("write_aio", 4096), ("cow_write", 4096)]
)
def test_a_held_request_and_one_that_overlaps_it_qemu_7_2(
    event: str, start: int, tmp_path: Path
) -> None:
    """As in qemu-io, the second allocation of a cluster waits for the first."""
    commands = [
        f"break {event} A",
        f"aio_write -P 1 {start} {65536 - start}",
        "wait_break A",
        "aio_write -P 2 32k 64k",
        "resume A",
        "aio_flush",
        f"read -P 1 {start} {32768 - start}",
        "read -P 2 32k 64k",
        "resume A",
        "remove_break B",
        "break lunch A",
    ]
    (tmp_path / "rules").write_text("")
    qemu.create(tmp_path / "base", "1M")
    qemu.io(tmp_path / "base", "write 0 1M")
    said = []
    for number, run in enumerate((qemu_io, vdisk_io)):
        image = tmp_path / f"{number}.qcow2"
        qemu.create(image, "1M", backing_file="base", backing_fmt="qcow2")
        out = run(tmp_path / "rules", image, *commands)
        said.append([line for line in out.splitlines() if "ops" not in line])
    assert sorted(said[0]) == sorted(said[1])


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_limits_leave_the_same_bytes_as_under_qemu_7_2(format: str, tmp_path: Path) -> None:
    limits = {
        "driver": "blkdebug",
        "align": 512,
        "max-transfer": 65536,
        "opt-write-zero": 4096,
        "max-write-zero": 131072,
        "opt-discard": 8192,
        "max-discard": 65536,
    }
    commands = (
        *("write -P 1 0 1M", "write -P 2 100 300k", "write -z 5000 500k", "write -P 3 511 2"),
        *("write -z 3 9", "discard 10000 100000", "read -P 2 1000 4000", "write -P 4 1048575 1"),
    )
    for name, run in (("theirs", peers.run), ("ours", None)):
        qemu.create(tmp_path / name, "1M", format=format)
        file = {"driver": "file", "filename": str(tmp_path / name)}
        image = {**limits, "image": {"driver": format, "file": file}}
        words = [word for command in commands for word in ("-c", command)]
        words.append("json:" + json.dumps(image))
        out = run("qemu-io", *words).stdout.decode() if run else cli.run("io", *words)
        assert out.count("ops") == 2 * len(commands)  # "1 ops" and "… ops/sec"
        assert "failed" not in out
    contents = [qemu.content(tmp_path / name, format) for name in ("theirs", "ours")]
    assert contents[0] == contents[1]
