"""``vdisk-nbd`` in the place of libnbd's tools (1.14): dumps, and what copying asks for."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.interop.test_nbd_client import vdisk_nbd
from tests.tools import cli, peers, qemu
from tests.tools.nbdkit import nbdkit
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from pathlib import Path

MiB = 1 << 20


@requires_peer("nbdkit", "nbddump")
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 17, 24, 32, 33, 48, 100_000])
def test_dumps_are_those_of_nbddump_1_14(size: int, tmp_path: Path) -> None:
    text = b"\1" * 80 + bytes(4096) + b"hello" * 9 + bytes(range(256)) + b"\7" * 70_000
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(text[:size])
        file.truncate(size)
    with nbdkit("file", path) as server:
        for words in ([], ["-n", "0"], ["-n", "8"], ["-n", "20"], ["--limit=75000"]):
            theirs = peers.run("nbddump", *words, server.uri).stdout
            assert vdisk_nbd("dump", *words, server.uri).stdout == theirs, words


@requires_peer("nbdkit", "nbddump")
def test_a_dump_of_holes_and_what_is_between(tmp_path: Path) -> None:
    data = '@5 1*30 @65535 "x" @3000000 2*40 @67108870 3'
    with nbdkit("data", f"data={data}", "size=100M") as server:
        theirs = peers.run("nbddump", server.uri).stdout
        assert vdisk_nbd("dump", server.uri).stdout == theirs


def recording(log: Path, size: str) -> list[str]:
    """A server that writes down what it is asked to write, in brackets."""
    note = f'echo "$@" >> {log}'
    return [
        "[",
        *("nbdkit", "eval", f"get_size=echo {size}", f"pwrite=cat >/dev/null; {note}"),
        *(f"zero={note}", f"trim={note}", "]"),
    ]


@requires_peer("nbdkit")
def test_zeroes_are_asked_for_in_aligned_pieces(tmp_path: Path) -> None:
    """As nbdcopy does: a long range is no single request, and its parts begin at multiples."""
    log = tmp_path / "log"
    source = ["[", "nbdkit", "data", "data=1 @1073741823 1", "]"]
    vdisk_nbd("copy", "-S", "0", "--request-size=32768", "--", *source, *recording(log, "7E"))
    asked = sorted(line.split() for line in log.read_text().splitlines())
    written = [each[1:] for each in asked if each[0] == "pwrite"]
    assert sorted(written) == [["32768", "0"], ["32768", "1073709056"]]
    ranges = sorted((int(each[2]), int(each[1])) for each in asked if each[0] == "zero")
    assert all(each[3:] == ["may_trim"] for each in asked if each[0] == "zero")
    ends = [start + length for start, length in ranges]
    assert ends == [128 * MiB * n for n in range(1, 8)] + [1024 * MiB - 32768]
    assert [start for start, _ in ranges] == [32768, *ends[:-1]]


@requires_peer("nbdkit")
@pytest.mark.parametrize("size", ["64k", "1M", "32M"])
def test_requests_have_the_size_that_was_asked_for(size: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = ["[", "nbdkit", "pattern", "64M", "]"]
    vdisk_nbd("copy", f"--request-size={size}", "--", *source, *recording(log, "64M"))
    lengths = {line.split()[1] for line in log.read_text().splitlines()}
    assert lengths == {str({"64k": 65536, "1M": MiB, "32M": 32 * MiB}[size])}


@requires_peer("nbdkit")
def test_zeroes_are_written_whatever_the_destination_says(tmp_path: Path) -> None:
    """Only --destination-is-zero spares them; a failure to zero is not missed otherwise."""
    source = ["[", "nbdkit", "null", "5M", "]"]
    target = ["[", "nbdkit", "--filter=error", "memory", "5M", "error-zero-rate=1", "]"]
    assert vdisk_nbd("copy", "--", *source, *target, check=False).returncode == 1
    vdisk_nbd("copy", "--destination-is-zero", "--", *source, *target)


@requires_peer("nbdkit", "nbdcopy", "qemu-img")
def test_nbdcopy_1_14_fills_a_served_image_with_compressed_clusters(tmp_path: Path) -> None:
    image, plain = tmp_path / "disk.qcow2", tmp_path / "plain"
    qemu.create(image, "16M")
    plain.write_bytes(bytes(MiB) + b"text " * 700_000 + bytes(range(256)) * 4096)
    options = "driver=compress,file.driver=qcow2,file.file.driver=file"
    serve = [sys.executable, "-m", "vdisk.cli.nbd", "serve", "-q", "--one-shot", "--image-opts"]
    words = ["[", *serve, f"{options},file.file.filename={image}", "]"]
    peers.run("nbdcopy", "--", plain, *words)
    found = qemu.check(image, "qcow2")
    assert found["check-errors"] == 0
    assert found["compressed-clusters"] > 50
    assert image.stat().st_size < MiB
    assert qemu.content(image, "qcow2")[: plain.stat().st_size] == plain.read_bytes()


@requires_peer("nbdkit", "qemu-img")
def test_holes_and_zeroes_in_the_map_of_qemu_img_7_2() -> None:
    """A server tells which zeroes have room, and which data has none."""
    told = (
        "0 4096 zero",
        "4096 4096 hole,zero",
        "8192 4096 hole",
        "12288 4096",
        "16384 49152 zero",
    )
    extents = "extents=" + "; ".join(f"echo {each}" for each in told)
    words = ("eval", "get_size=echo 64k", "pread=exit 1", "can_extents=exit 0")
    with nbdkit(*words, extents) as server:
        theirs = peers.run("qemu-img", "map", "-f", "raw", "--output=json", server.uri).stdout
        ours = json.loads(cli.run("map", "-f", "raw", "--output=json", server.uri))
        assert ours == json.loads(theirs)
        assert {(each["zero"], each["data"]) for each in ours} == {
            (zero, data) for zero in (True, False) for data in (True, False)
        }


@requires_peer("nbdkit", "nbdinfo")
def test_the_list_describes_its_exports(tmp_path: Path) -> None:
    """nbdinfo believes the list about descriptions, also where the export tells another one."""
    script = tmp_path / "plugin"
    script.write_text(
        'case "$1" in list_exports) echo INTERLEAVED; echo a; echo listed;; '
        'open) echo "$3";; export_description) echo told;; get_size) echo 512;; *) exit 2;; esac'
    )
    script.chmod(0o755)
    with nbdkit("sh", script) as server:
        theirs = json.loads(peers.run("nbdinfo", "--list", "--json", server.uri).stdout)
        ours = json.loads(vdisk_nbd("list", "--json", server.uri).stdout)
        described = [listed["exports"][0]["description"] for listed in (ours, theirs)]
        assert described == ["listed", "listed"]
