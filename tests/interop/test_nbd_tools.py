"""``vdisk-nbd`` in the place of libnbd's tools (1.14): info, maps, dumps, copies."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import cli, peers, qemu
from tests.tools.command import vdisk as vdisk_image
from tests.tools.command import vdisk_nbd
from tests.tools.content import content
from tests.tools.nbdkit import nbdkit
from tests.tools.peers import requires_peer
from vdisk.block import Kind
from vdisk.nbd.wire import QEMU_ALLOCATION_DEPTH
from vdisk.opening import open_image
from vdisk.opening.names import parse_image_options as tree
from vdisk.stores.nbd import NbdStore

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


@requires_peer("qemu-nbd", "nbdinfo", "qemu-img", "qemu-io")
@pytest.mark.parametrize(
    "context", ["base:allocation", QEMU_ALLOCATION_DEPTH, "qemu:dirty-bitmap:b0"]
)
def test_maps_are_those_of_nbdinfo_1_14(context: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu.create(image, "16M")
    qemu.img("bitmap", "--add", image, "b0")
    qemu.io(image, "write 1M 2M", "write 5M 100k", "write -z 8M 1M")
    with qemu.nbd(image, "qcow2", "-A", "-B", "b0", readonly=True) as uri:
        for ours, theirs in (
            ([], []),
            (["--totals"], ["--totals"]),
        ):
            peer = peers.run("nbdinfo", f"--map={context}", *theirs, uri)
            for words in (["map", "--context", context], ["info", f"--map={context}"]):
                assert vdisk_nbd(*words, *ours, uri).stdout == peer.stdout
            done = vdisk_nbd("map", "--context", context, "--json", *ours, uri)
            peer = peers.run("nbdinfo", f"--map={context}", "--json", *theirs, uri)
            assert json.loads(done.stdout) == json.loads(peer.stdout)


@requires_peer("qemu-nbd", "qemu-img", "qemu-io")
@pytest.mark.parametrize("context", [QEMU_ALLOCATION_DEPTH, "qemu:dirty-bitmap:b0"])
def test_another_context_is_shown_as_qemu_img_7_2_does(context: str, tmp_path: Path) -> None:
    qemu.create(tmp_path / "base.qcow2", "4M")
    qemu.io(tmp_path / "base.qcow2", "write 0 2M")
    image = tmp_path / "top.qcow2"
    qemu.create(image, "4M", backing_file="base.qcow2", backing_fmt="qcow2")
    qemu.img("bitmap", "--add", image, "b0")
    qemu.io(image, "write 1M 2M")
    with qemu.nbd(image, "qcow2", "-A", "-B", "b0", readonly=True) as uri:
        node = f"driver=nbd,path={uri.partition('socket=')[2]},x-dirty-bitmap="
        words = ["map", "--output=json", "--image-opts", node + context]
        theirs = qemu.img(*words).stdout
        assert vdisk_image(*words).stdout == theirs
        assert len(json.loads(theirs)) >= 3
        assert vdisk_image(*words[:-1], node + "none", check=False).returncode == 1
        with open_image(f"json:{json.dumps(tree(node + context))}") as store:
            assert [each.kind for each in store.map()] == [Kind.DATA]  # reading is not misled


@requires_peer("qemu-nbd", "nbdinfo", "qemu-img")
def test_info_is_that_of_nbdinfo_1_14(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu.create(image, "10M")
    with qemu.nbd(image, "qcow2", "-A", "-D", "a disk", export="x y") as name:
        uri = name.replace(" ", "%20")
        compare_info(uri)
        assert vdisk_nbd("info", "--size", uri).stdout == b"10485760\n"
        for question, status in (
            (("--can", "trim"), 0),
            (("--is", "read-only"), 2),
            (("--can", "nonsense"), 1),
        ):
            ours = vdisk_nbd("info", *question, uri, check=False).returncode
            theirs = peers.run("nbdinfo", *question, uri, check=False).returncode
            assert ours == theirs == status


def compare_info(uri: str) -> None:
    """All that nbdinfo tells, with and without a look into the export."""
    for flags in ([], ["--no-content"], ["--color"]):
        theirs = json.loads(peers.run("nbdinfo", "--json", *flags, uri).stdout)
        assert same_json(vdisk_nbd("info", "--json", *flags, uri).stdout, theirs)
        if flags != ["--color"]:  # whose colours are its own
            said = peers.run("nbdinfo", *flags, uri).stdout
            assert same_text(vdisk_nbd("info", *flags, uri).stdout, said)
    if theirs["protocol"] == "newstyle-fixed":
        theirs = json.loads(peers.run("nbdinfo", "--list", "--json", uri).stdout)
        assert same_json(vdisk_nbd("list", "--json", uri).stdout, theirs)
        said = peers.run("nbdinfo", "--list", uri).stdout
        assert same_text(vdisk_nbd("list", uri).stdout, said)
        inside = peers.run("nbdinfo", "--list", "--content", uri).stdout
        assert same_text(vdisk_nbd("info", "-L", "--content", uri).stdout, inside)


def same_json(said: bytes, theirs: dict[str, Any]) -> bool:
    """What we say is what they say; version 1.14 knows nothing of extended headers, and asks for
    contexts only where there are structured replies."""
    ours = json.loads(said)
    if "extended" not in theirs:
        assert ours.pop("extended") is False
        for export in ours["exports"]:
            assert export.pop("can_block_status_payload") is False
            if not theirs.get("structured"):
                export.pop("contexts", None)
    return bool(ours == theirs)


def same_text(ours: bytes, theirs: bytes) -> bool:
    """As :func:`same_json`; version 1.14 gives the sizes of blocks in bytes alone."""
    if b"can_block_status_payload" not in theirs:
        ours = ours.replace(b"\tcan_block_status_payload: false\n", b"")
        ours = re.sub(rb"(\tblock_size_\w+: \d+) \(\w+\)", rb"\1", ours)
        if b"using simple packets" in theirs:
            ours = ours.replace(b"\tcontexts:\n\t\tbase:allocation\n", b"")
    return ours == theirs


@requires_peer("nbdkit", "nbdinfo")
@pytest.mark.parametrize("words", [[], ["--no-sr"], ["-o"], ["-n", "--mask-handshake=0"], ["-r"]])
def test_info_of_every_kind_of_nbdkit_1_32(words: list[str]) -> None:
    with nbdkit(*words, "memory", "1000k") as server:
        compare_info(server.uri)
        with NbdStore(server.uri) as store:
            assert store.read(0, 4096) == bytes(4096)


@requires_peer("nbdkit", "qemu-img")
def test_every_command_takes_uris(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(content())
    target = tmp_path / "disk.qcow2"
    with nbdkit("file", source) as server:
        peers.run_vdisk("convert", "-O", "qcow2", server.uri, target)
        qemu.compare(source, target)
        peers.run_vdisk("compare", server.uri, target)
        info = json.loads(peers.run_vdisk("info", "--output=json", server.uri).stdout)
        assert info["virtual-size"] == 8 * MiB
        assert info["filename"] == server.uri
        listed = json.loads(peers.run_vdisk("map", "--output=json", server.uri).stdout)
        theirs = qemu.img_json("map", "-f", "raw", server.uri)
        assert [(e["start"], e["length"], e["zero"]) for e in listed] == [
            (e["start"], e["length"], e["zero"]) for e in theirs
        ]
        done = peers.run_vdisk("io", "-r", "-f", "raw", "-c", "read -v 1M 16", server.uri)
        assert b"read 16/16 bytes" in done.stdout
    with nbdkit("memory", "8M") as server:
        peers.run_vdisk("convert", "-n", "-O", "raw", target, server.uri)
        assert qemu.content(server.uri, "raw") == source.read_bytes()


@requires_peer("nbdkit", "qemu-nbd", "qemu-img")
def test_copies_in_all_directions(tmp_path: Path) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(content())
    with nbdkit("file", source) as one, nbdkit("memory", "8M") as other:
        vdisk_nbd("copy", one.uri, target)
        assert target.read_bytes() == source.read_bytes()
        assert target.stat().st_blocks * 512 < 6 * MiB  # the holes are holes
        vdisk_nbd("copy", "--allocated", "--synchronous", one.uri, target)
        assert target.stat().st_blocks * 512 >= 8 * MiB
        vdisk_nbd("copy", "--flush", one.uri, other.uri)
        assert qemu.content(other.uri, "raw") == source.read_bytes()
        assert vdisk_nbd("copy", other.uri, "-").stdout == source.read_bytes()
        vdisk_nbd("copy", "--no-extents", other.uri, "null:")
        vdisk_nbd("copy", "-", other.uri, input=b"stream" * 1000)
        assert vdisk_nbd("copy", other.uri, "-").stdout.startswith(b"stream" * 1000)
    qemu.create(tmp_path / "d.qcow2", "8M")
    words = ["[", "qemu-nbd", "-f", "qcow2", str(tmp_path / "d.qcow2"), "]"]
    vdisk_nbd("copy", "--", source, *words)
    assert qemu.content(tmp_path / "d.qcow2") == source.read_bytes()


@requires_peer("nbdkit")
def test_a_source_that_fails_to_tell_its_extents_is_read(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content())
    words = [
        "nbdkit",
        "--filter=error",
        "file",
        str(tmp_path / "source"),
        "error-extents-rate=100%",
    ]
    vdisk_nbd("copy", "--", "[", *words, "]", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content()
    vdisk_nbd("copy", "--", tmp_path / "target", "[", *words, "]")  # as a target, too


@requires_peer("nbdkit")
def test_a_map_of_more_than_a_question_holds() -> None:
    """nbdkit 1.32 ended itself when it was asked about 2**32 - 1 bytes of a longer extent."""
    with nbdkit("null", "8G") as server:
        assert vdisk_nbd("map", server.uri).stdout.split()[:3] == [b"0", b"8589934592", b"3"]


@requires_peer("nbdkit")
def test_a_copy_into_too_little_room(tmp_path: Path) -> None:
    with nbdkit("memory", "4M") as server:
        (tmp_path / "large").write_bytes(content())
        done = vdisk_nbd("copy", tmp_path / "large", server.uri, check=False)
        assert done.returncode == 1
        assert b"holds 4194304 bytes, and the source has 8388608" in done.stderr
        done = vdisk_nbd("copy", "-", server.uri, check=False, input=content())
        assert b"past the end" in done.stderr


@requires_peer("nbdkit")
@pytest.mark.parametrize("words", [["-d", "16"], ["--write", "-C", "2", "-b", "64k", "-d", "4"]])
def test_bench_measures_nbdkit_1_32(words: list[str]) -> None:
    with nbdkit("memory", "16M") as server:
        found = json.loads(vdisk_nbd("bench", "-s", "0.3", "--json", *words, server.uri).stdout)
    assert found["requests"] > 50
    assert found["bytes"] == found["requests"] * found["block-size"]
    latency = found["latency-microseconds"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p100"]
