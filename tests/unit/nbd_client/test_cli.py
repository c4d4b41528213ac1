"""The client's commands of ``vdisk-nbd``, on a server in memory."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_server import HostileServer, honest
from tests.tools.nbd_pair import BLOCK, EVERYTHING, MemoryDisk
from tests.tools.peers import find
from vdisk.cli._nbd._exports import short_size
from vdisk.cli._nbd.connect import device_index
from vdisk.cli._nbd.map import description
from vdisk.cli.nbd import main
from vdisk.errors import InvalidRequestError
from vdisk.nbd.wire import ErrorValue, TransmissionFlag

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


def disk(**more: object) -> MemoryDisk:
    found = MemoryDisk.of(SIZE, description="of a test", **more)  # type: ignore[arg-type]
    found.content[BLOCK : 2 * BLOCK] = b"x" * BLOCK
    return found


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(disk())) as server:
        assert main(["info", "--json", server.uri]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["extended"] is True
        (export,) = found["exports"]
        assert export["export-size-str"] == "1M"
        assert export["description"] == "of a test"
        assert export["contexts"] == ["base:allocation"]
        assert main(["info", server.uri]) == 0
        assert "using extended packets" in capsys.readouterr().out
        assert main(["info", "--can", "flush", server.uri]) == 0
        assert main(["info", "--is", "tls", server.uri]) == 2
        assert main(["info", "--can", "fly", server.uri]) == 1
        assert "nobody knows about 'fly'" in capsys.readouterr().err


def test_questions_in_other_words(capsys: pytest.CaptureFixture[str]) -> None:
    """The options and spellings of nbdinfo 1.22."""
    with HostileServer(honest(disk())) as server:
        for words in (
            ["--has", "Extended Headers"],
            ["--can", "multiconn"],
            ["--has", "sr"],
            ["--can", "block_status_payload"],
            ["--isnt", "read-only"],
            ["--cannot", "connect"],
            ["--hasnt", "eh"],
        ):
            expected = 2 if words[0] in ("--cannot", "--hasnt") else 0
            assert main(["info", *words, server.uri]) == expected, words
        assert not capsys.readouterr().out
        assert main(["info", "--uri", server.uri]) == 0
        assert capsys.readouterr().out == f"{server.uri}\n"
        assert main(["info", "--json", "--uri", server.uri]) == 0
        assert json.loads(capsys.readouterr().out) == server.uri


def test_list_and_map_as_options_of_info(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(disk())) as server:
        for words, command in (
            (["--list"], ["list"]),
            (["-L", "--json"], ["list", "--json"]),
            (["--map"], ["map"]),
            (["--map=base:allocation", "--totals"], ["map", "--totals"]),
        ):
            assert main(["info", *words, server.uri]) == main([*command, server.uri]) == 0
            shown = capsys.readouterr().out
            assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]
        assert main(["info", "--totals", server.uri]) == 1
        assert main(["info", "--map", "--size", server.uri]) == 1


def test_colours_are_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(disk())) as server:
        for words in (["info", "--no-content"], ["list"], ["map"]):
            assert main([*words, server.uri]) == main([*words, "--no-colors", server.uri]) == 0
            assert "\033" not in capsys.readouterr().out
            assert main([*words, "--colour", server.uri]) == 0
            assert "\033[" in capsys.readouterr().out


def test_what_a_server_says_controls_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "red \033[31m\nexport=\x9b"
    with HostileServer(honest(MemoryDisk.of(SIZE, description=text))) as server:
        assert main(["info", "--no-content", server.uri]) == 0
        shown = capsys.readouterr().out
        assert "\tdescription: red \\x1b[31m\\nexport=\\x9b\n" in shown
        assert main(["info", "--json", "--no-content", server.uri]) == 0
        assert json.loads(capsys.readouterr().out)["exports"][0]["description"] == text


def test_what_an_export_holds(capsys: pytest.CaptureFixture[str]) -> None:
    holding = disk()
    holding.content[510:512] = b"\x55\xaa"
    with HostileServer(honest(holding)) as server:
        assert main(["info", server.uri]) == 0
        assert ("\tcontent: DOS/MBR boot sector" in capsys.readouterr().out) == bool(find("file"))
        assert main(["list", server.uri]) == main(["info", "--no-content", server.uri]) == 0
        assert "content" not in capsys.readouterr().out


def test_copying_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(disk())) as server:
        assert main(["copy", "-v", "--synchronous", server.uri, "null:"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        f"vdisk-nbd: src: {server.uri}",
        "vdisk-nbd: src: size=1048576 (1M)",
        "vdisk-nbd: dst: null:",
    ]
    assert "connections=1 requests=1 threads=1" in lines[3]


def test_a_size_without_a_larger_unit_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(MemoryDisk.of(1537))) as server:
        assert main(["info", server.uri]) == 0
    assert "\texport-size: 1537\n" in capsys.readouterr().out


def test_a_server_that_is_started_for_the_purpose(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    serve = [sys.executable, "-m", "vdisk.cli.nbd", "serve", "-q", "-f", "raw"]
    server = ["[", *serve, str(tmp_path / "disk"), "]"]
    assert main(["info", "--size", "--", *server]) == 0
    assert capfd.readouterr().out == f"{SIZE}\n"
    assert main(["map", "--totals", "--", *server]) == 0
    assert capfd.readouterr().out.split()[:2] == [str(SIZE), "100.0%"]
    assert main(["list", "--", *server]) == 0
    assert "export-size: 1048576 (1M)" in capfd.readouterr().out
    assert main(["info", "one", "two"]) == 1


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(disk())) as server:
        assert main(["list", server.uri]) == 0
    assert 'export="":\n\tdescription: of a test\n' in capsys.readouterr().out


def test_map(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(disk())) as server:
        assert main(["map", server.uri]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            "         0        4096    3  hole,zero",
            "      4096        4096    0  data",
            "      8192     1040384    3  hole,zero",
        ]
        assert main(["map", "--totals", "--json", server.uri]) == 0
        assert json.loads(capsys.readouterr().out)[0] == {
            "size": 4096,
            "percent": 0.390625,
            "type": 0,
            "description": "data",
        }
        assert main(["map", "--context", "x:y", server.uri]) == 1
        assert "no meta context 'x:y'" in capsys.readouterr().err


def test_meanings() -> None:
    assert description("qemu:allocation-depth", 3) == "backing depth 3"
    assert description("qemu:dirty-bitmap:x", 1) == "dirty"
    assert description("other:context", 1) == ""
    assert [short_size(size) for size in (0, 1, 1024, 1536, 5 << 40)] == [
        "0",
        "1",
        "1K",
        "1536",
        "5T",
    ]


def test_copy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, target = disk(), MemoryDisk.of(SIZE)
    with HostileServer(honest(source)) as one, HostileServer(honest(target)) as other:
        assert main(["copy", one.uri, other.uri]) == 0
        assert target.content == source.content
        assert main(["copy", "--progress-fd", "1", one.uri, str(tmp_path / "file")]) == 0
        assert capfd.readouterr().out.splitlines()[-1] == "100/100"
        assert main(["copy", "--progress=1", one.uri, str(tmp_path / "file")]) == 0
        assert capfd.readouterr().out.splitlines()[-1] == "100/100"
    assert (tmp_path / "file").read_bytes() == source.content


def test_pipes_are_copied_from_and_to(tmp_path: Path) -> None:
    target = MemoryDisk.of(SIZE)
    os.mkfifo(tmp_path / "fifo")
    with HostileServer(honest(target)) as server, ThreadPoolExecutor(1) as pool:
        assert main(["copy", "/dev/null", server.uri]) == 0
        assert target.content == bytes(SIZE)
        writing = pool.submit((tmp_path / "fifo").write_bytes, b"w" * 5000)
        assert main(["copy", str(tmp_path / "fifo"), server.uri]) == 0
        writing.result()
        assert target.content[:5001] == b"w" * 5000 + b"\0"
        reading = pool.submit((tmp_path / "fifo").read_bytes)
        assert main(["copy", server.uri, str(tmp_path / "fifo")]) == 0
        assert reading.result() == target.content


def test_a_destination_that_is_not_zero_becomes_so() -> None:
    source, target = disk(), MemoryDisk.of(SIZE)
    target.content[:] = b"y" * SIZE
    with HostileServer(honest(source)) as one, HostileServer(honest(target)) as other:
        assert main(["copy", one.uri, other.uri]) == 0
    assert target.content == source.content


@pytest.mark.parametrize(
    "words",
    [
        ["one"],
        ["one", "two", "three"],
        ["null:", "null:"],
        ["--request-size", "1", "a", "b"],
        ["--connections", "99", "a", "b"],
        ["--requests", "0", "a", "b"],
        ["--", "[", "]", "null:"],
        ["--", "[", "no-such-program", "]", "null:"],
        ["/nonexistent/file", "null:"],
    ],
)
def test_copies_that_cannot_be(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", *words]) == 1
    assert capsys.readouterr().err.startswith("vdisk-nbd: ")


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer(honest(disk())) as server:
        assert main(["bench", "-s", "0.1", "-d", "4", server.uri]) == 0
        assert "requests/s" in capsys.readouterr().out
        assert main(["bench", "-s", "0.1", "--write", "--sequential", "--json", server.uri]) == 0
        assert json.loads(capsys.readouterr().out)["operation"] == "write"


def test_bench_ends_at_a_failed_request(capsys: pytest.CaptureFixture[str]) -> None:
    broken = disk()
    broken.failures[0] = ErrorValue.NBD_EIO
    with HostileServer(honest(broken)) as server:
        assert main(["bench", "-s", "5", "--sequential", server.uri]) == 1
    assert "a request failed: NBD_EIO" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["-b", "64M"], ["-d", "0"], ["-d", "5000"], ["-C", "0"], ["--write"]]
)
def test_benches_that_cannot_be(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = EVERYTHING | TransmissionFlag.NBD_FLAG_READ_ONLY
    with HostileServer(honest(disk(flags=flags))) as server:
        assert main(["bench", *words, server.uri]) == 1
    assert capsys.readouterr().err


def test_names_of_devices() -> None:
    assert [device_index(name) for name in ("/dev/nbd0", "nbd15", "7")] == [0, 15, 7]
    for name in ("/dev/sda", "nbd", "nbd-1", "/dev/nbd1p2", "nbd99999999999"):
        with pytest.raises(InvalidRequestError):
            device_index(name)


def test_what_the_kernel_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "nbds://localhost/"]) == 1
    assert "does not encrypt" in capsys.readouterr().err
    assert main(["connect", "--timeout", "-1", "nbd://localhost/"]) == 1
    assert main(["disconnect", "/dev/sda"]) == 1
