"""``vdisk io`` by itself; tests/interop/test_io.py holds it beside qemu-io."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import images
from tests.tools.patience import PATIENCE
from vdisk.cli._io import report
from vdisk.cli._io.arguments import (
    CommandFailed,
    UsageError,
    parse_lengths,
    parse_number,
    parse_pattern,
    parse_words,
)
from vdisk.cli._io.reading import matches
from vdisk.cli._io.session import Session, Settings
from vdisk.cli._io.table import COMMANDS, QuitRequested, find, run_line
from vdisk.cli.main import main
from vdisk.errors import CorruptImageError, DeviceError, NotFoundError
from vdisk.filters.faults import Faults
from vdisk.filters.passing import Passing
from vdisk.formats.raw import RawImage
from vdisk.opening import open_image
from vdisk.opening.creating import plan_creation
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.block import BlockDevice, Extent

MIB = 1 << 20


# -- what is printed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (47.638205, "47.638205 bytes"),
        (1024, "1 KiB"),
        (1536, "1.500 KiB"),
        (2**20 - 1, "1023.999 KiB"),
        (1.5 * 2**40, "1.500 TiB"),
        (2**60, "1 EiB"),
    ],
)
def test_sizes(value: float, text: str) -> None:
    assert report.size_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "short", "long"),
    [
        (0.0, "00.00 sec", "0:00:00.00"),
        (0.259, "00.25 sec", "0:00:00.25"),
        (2.0, "0:00:02.00", "0:00:02.00"),
        (3725.5, "1:02:05.50", "1:02:05.50"),
    ],
)
def test_times(seconds: float, short: str, long: str) -> None:
    assert report.time_text(seconds) == short
    assert report.time_text(seconds, long=True) == long


def test_statistics() -> None:
    assert report.statistics("wrote", 512, 65536, 0.5, machine=False) == (
        "wrote 65536/65536 bytes at offset 512\n"
        "64 KiB, 1 ops; 00.50 sec (128 KiB/sec and 2.0000 ops/sec)"
    )
    assert report.statistics("read", 0, 65536, 0.5, machine=True) == (
        "65536,1,0:00:00.50,131072.000,2.000"
    )


def test_hex_dump() -> None:
    assert list(report.hex_dump(b"aZ0 \x00\xe9.~" + bytes(9), 0x1F0)) == [
        "000001f0:  61 5a 30 20 00 e9 2e 7e 00 00 00 00 00 00 00 00  aZ0.............",
        "00000200:  00  .",
    ]


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pattern"), [("0", 0), ("255", 255), ("0xaA", 0xAA), ("0X1", 1), ("010", 8)]
)
def test_patterns_are_written_as_in_c(text: str, pattern: int) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", "-1", "256", "0x100", "08", "0x", "1_0", " 1", "a", "²"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(CommandFailed, match="is not a valid pattern byte"):
        parse_pattern(text)


@pytest.mark.parametrize(("text", "large"), [("9E", True), ("0xffffffffffffffffff", True)] + [
    (text, False) for text in ("", "abc", "1.5", "1e3", "-1", "1kk", "²")
])  # fmt: skip
def test_numbers_that_are_none_say_why(text: str, large: bool) -> None:
    with pytest.raises(CommandFailed, match="too large" if large else "non-numeric"):
        parse_number(text)


def test_the_lengths_of_a_vector_are_bounded_together() -> None:
    assert parse_lengths(["1k", "2k"]) == [1024, 2048]
    with pytest.raises(CommandFailed, match="total number of bytes"):
        parse_lengths(["1G"] * 3)


def test_options_and_operands_mix() -> None:
    arguments = parse_words("read", ["0", "-vP", "1", "512"], "P:v")
    assert arguments.options == {"v": "", "P": "1"}
    assert arguments.operands == ["0", "512"]
    for words in (["-x"], ["-P"]):
        with pytest.raises(UsageError):
            parse_words("read", words, "P:v")


@given(st.binary(min_size=1, max_size=64), st.integers(0, 70), st.integers(0, 70))
def test_the_pattern_check_finds_every_other_byte(content: bytes, start: int, length: int) -> None:
    length = min(length, max(len(content) - start, 0))
    expected = all(byte == content[0] for byte in content[start : start + length])
    assert matches(bytearray(content), content[0], start, length) == expected


def test_the_pattern_check_is_fast_and_sees_the_last_byte() -> None:
    content = bytearray(b"\x07") * (64 * MIB)
    began = time.thread_time()
    assert matches(content, 7, 0, len(content))
    assert time.thread_time() - began < 1  # a byte at a time would take several seconds
    content[-1] = 8
    assert not matches(content, 7, 0, len(content))


# -- commands on a device ------------------------------------------------------------------------


class Slow(MemoryStore):
    """Reads wait until they are let go; writes fail."""

    def __init__(self) -> None:
        super().__init__(bytes(MIB), growable=False)
        self.go = threading.Event()

    def _read_into(self, offset: int, view: memoryview) -> None:
        assert self.go.wait(PATIENCE)
        super()._read_into(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        raise DeviceError("broken")


def session_of(device: BlockDevice) -> Session:
    session = Session(lambda _settings: device)
    session.open(Settings("image"))
    return session


def test_asynchronous_requests_report_when_they_are_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = Slow()
    with session_of(device) as session:
        for _ in range(3):
            assert run_line(session, "aio_read 0 512")
        session.report_finished()
        assert capsys.readouterr().out == ""
        threading.Timer(0.05, device.go.set).start()
        assert run_line(session, "aio_flush")
    assert capsys.readouterr().out.count("read 512/512 bytes at offset 0\n") == 3


def test_asynchronous_failures_are_printed_and_fail_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with session_of(Slow()) as session:
        assert run_line(session, "aio_write 0 512")
        assert run_line(session, "aio_write 0 2M")
        assert run_line(session, "aio_flush")
    assert capsys.readouterr().out == "aio_write failed: Input/output error\n" * 2


def test_closing_waits_for_what_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    device = Slow()
    session = session_of(device)
    run_line(session, "aio_read 0 512")
    threading.Timer(0.05, device.go.set).start()
    run_line(session, "close")
    assert device.closed
    assert "read 512/512" in capsys.readouterr().out


def test_why_a_request_failed_is_said_where_the_number_does_not_say_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(MemoryStore):
        def _read_into(self, offset: int, view: memoryview) -> None:
            raise CorruptImageError("the L2 entry leads nowhere", path="image", offset=8)

        def _map(self, start: int, length: int) -> Iterator[Extent]:
            raise CorruptImageError("the L2 entry leads nowhere", path="image", offset=8)

    with session_of(Broken(bytes(512))) as session:
        assert not run_line(session, "read 0 512")
        captured = capsys.readouterr()
        assert captured.out == "read failed: Input/output error\n"
        assert "image, offset 0x8: the L2 entry leads nowhere" in captured.err
        assert not run_line(session, "map")
        assert "the L2 entry leads nowhere" in capsys.readouterr().err


def test_an_image_that_cannot_be_reopened_stays_open() -> None:
    def opener(settings: Settings) -> BlockDevice:
        if settings.readonly:
            raise NotFoundError("gone")
        return RawImage(MemoryStore(bytes(512)), readonly=False)

    with Session(opener) as session:
        session.open(Settings("image"))
        assert not run_line(session, "reopen -r")
        assert session.is_open
        assert not session.device.readonly


def test_zeroing_without_a_fallback_needs_a_device_that_zeroes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = MemoryStore(bytes(512), growable=False)
    with session_of(device) as session:
        assert run_line(session, "write -q -zn 0 512")
        device.zeroes_fast = False
        assert not run_line(session, "write -zn 0 512")
    assert capsys.readouterr().out == "write failed: Operation not supported\n"


def test_a_source_file_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"abc")
    device = MemoryStore(bytes(8), growable=False)
    with session_of(device) as session:
        assert run_line(session, f"write -q -s {tmp_path}/source 0 8")
        assert device.content() == b"abcabcab"


def test_every_command_has_help_and_refuses_a_wrong_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with session_of(MemoryStore(bytes(512))) as session:
        for command in COMMANDS:
            assert run_line(session, f"help {command.name}")
            assert capsys.readouterr().out.startswith(command.usage)
            if command.minimum or command.maximum is None:
                words = " ".join(["-Z", *["1"] * max(command.minimum - 1, 0)])
                assert not run_line(session, f"{command.name} {words}")
                captured = capsys.readouterr()
                assert captured.out == f"{command.usage}\n"
                assert captured.err == f"{command.name}: invalid option -- 'Z'\n"
        assert find("?") is find("help")


def test_quit() -> None:
    with Session(lambda _settings: MemoryStore()) as session, pytest.raises(QuitRequested):
        run_line(session, "q")


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with base.raw (1 MiB of 0x61) and overlay.qcow2 over it."""
    monkeypatch.chdir(tmp_path)
    Path("base.raw").write_bytes(b"a" * MIB)
    options = {"backing_file": "base.raw", "backing_fmt": "raw"}
    plan_creation("overlay.qcow2", format="qcow2", options=options).run()
    yield tmp_path


def io(*words: str) -> int:
    return main(["io", *words])


@pytest.mark.usefixtures("folder")
class TestCommand:
    """The whole of ``vdisk io``."""

    def test_changes_of_a_snapshot_are_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", os.getcwd())
        assert (
            io("-s", "-f", "raw", "base.raw", "-c", "write -P 1 5 1k", "-c", "read -P 1 5 1k") == 0
        )
        assert io("-f", "raw", "base.raw", "-c", "read -P 0x61 0 1M") == 0
        assert sorted(os.listdir()) == ["base.raw", "overlay.qcow2"]

    def test_copy_on_read_takes_whole_clusters(self) -> None:
        assert io("-C", "overlay.qcow2", "-c", "aio_read 100k 1", "-c", "readv 300k 1 1") == 0
        with open_image("overlay.qcow2") as image:
            own = [(each.start, each.length) for each in image.map() if each.depth == 0]
            assert image.read(0, MIB) == b"a" * MIB
        assert own == [(64 << 10, 64 << 10), (256 << 10, 64 << 10)]
        commands = ["-c", "info", "-c", "write -c 512k 64k", "-c", "truncate -m falloc 2M"]
        assert io("-C", "overlay.qcow2", *commands) == 0
        assert io("-C", "-r", "overlay.qcow2", "-c", "length") == 1

    def test_options_describe_the_image(self) -> None:
        tree = "driver=raw,offset=4096,size=8192,file.driver=file,file.filename=base.raw"
        assert io("--image-opts", tree, "-c", "write -P 1 0 8k", "-c", "length") == 0
        assert Path("base.raw").read_bytes()[4095:12289] == b"a" + b"\1" * 8192 + b"a"
        assert io("-c", f"open -o {tree}", "-c", "read -P 1 0 8k") == 0
        assert io("-f", "raw", "--image-opts", tree, "-c", "length") == 1

    def test_open_takes_options_too_where_the_program_does(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tree = "driver=qcow2,file.filename=overlay.qcow2"
        assert io("--image-opts", "-c", f"open {tree}", "-c", "read -P 0x61 0 8k") == 0
        assert io("-c", f"open {tree}") == 1
        assert "can't open device" in capsys.readouterr().err

    def test_options_are_changed_one_by_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        sizes = ("cache-size=1M", "l2-cache-size=512k", "refcount-cache-size=128k")
        commands = [word for size in sizes for word in ("-c", f"reopen -o {size}")]
        assert io(*commands, "-c", "read -P 0x61 0 8k", "overlay.qcow2") == 0
        assert io("-c", "reopen -r -o read-only=on", "overlay.qcow2") == 1
        assert io("-c", "reopen -c none -o cache.direct=on", "overlay.qcow2") == 1
        assert capsys.readouterr().err.count("Cannot set both") == 2

    @pytest.mark.parametrize(
        ("option", "changes"),
        [
            ("node-name=other", True),
            ("file.node-name=other", True),
            ("driver=qcow2", False),
            ("driver=raw", True),
            ("file.driver=file", False),
            ("file.driver=qcow2", True),
            ("backing.driver=raw", False),
            ("backing.driver=file", True),
        ],
    )
    def test_nodes_stay_what_they_are(
        self, option: str, changes: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status = io("overlay.qcow2", "-c", f"reopen -o {option}", "-c", "read -P 0x61 0 8k")
        assert status == changes
        name = option.partition("=")[0].rpartition(".")[2]
        said = capsys.readouterr().err
        assert said == (f"vdisk io: Cannot change the option '{name}'\n" if changes else "")

    @pytest.mark.parametrize("node", ["", "file.", "backing."])
    def test_a_name_that_a_node_has_can_be_repeated(self, node: str) -> None:
        opened = f"open -o {node}node-name=one overlay.qcow2"
        assert io("-c", opened, "-c", f"reopen -o {node}node-name=one", "-c", "reopen") == 0
        assert io("-c", opened, "-c", f"reopen -o {node}node-name=two") == 1

    def test_a_format_that_a_tree_states_itself_is_no_node_above_it(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tree = "json:{'driver': 'null-co', 'size': 65536}"
        assert io("-f", "null-co", "-c", "reopen", "-c", "length", tree) == 0
        assert capsys.readouterr().out == "64 KiB\n"

    def test_backing_files_can_be_forbidden(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert io("--no-backing", "overlay.qcow2", "-c", "length") == 1
        assert "forbidden" in capsys.readouterr().err
        assert io("--no-backing", "-c", "open overlay.qcow2") == 1

    def test_a_guessed_raw_image_is_guarded(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("magic").write_bytes(b"QFI\xfb\0\0\0\3")
        assert io("base.raw", "-c", "write -s magic 0 512") == 1
        captured = capsys.readouterr()
        assert captured.out == "write failed: Operation not permitted\n"
        assert "guessed" in captured.err
        assert io("-f", "raw", "base.raw", "-c", "write -s magic 0 512") == 0

    def test_later_commands_run_after_a_failure(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert io("-f", "raw", "base.raw", "-c", "nonsense", "-c", "length") == 1
        captured = capsys.readouterr()
        assert captured.out == "1 MiB\n"
        assert captured.err == 'command "nonsense" not found\n'

    def test_discards_can_be_ignored(self) -> None:
        assert io("-f", "raw", "-d", "ignore", "base.raw", "-c", "discard 0 1M") == 0
        assert Path("base.raw").read_bytes() == b"a" * MIB
        assert io("-f", "raw", "base.raw", "-c", "discard 0 1M", "-c", "read -P 0 0 1M") == 0

    def test_an_image_in_use_is_read_by_force(self, capsys: pytest.CaptureFixture[str]) -> None:
        with open_image("base.raw", format="raw", readonly=False):
            assert io("-r", "-f", "raw", "base.raw", "-c", "length") == 1
            assert re.search(r"can't open device base\.raw: .*force", capsys.readouterr().err)
            assert io("-r", "-U", "-f", "raw", "base.raw", "-c", "length") == 0

    def test_commands_are_asked_for(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = iter(["length", "", "quit"])
        prompts: list[str] = []
        monkeypatch.setattr("builtins.input", lambda prompt: prompts.append(prompt) or next(lines))
        assert io("-f", "raw", "base.raw") == 0
        assert prompts == ["vdisk io> "] * 3
        assert capsys.readouterr().out == "1 MiB\n"

    def test_an_interrupt_closes_the_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(_prompt: str) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr("builtins.input", interrupted)
        assert io("-f", "raw", "base.raw") == 130
        assert io("-f", "raw", "base.raw", "-c", "length") == 0, "the lock is gone"


@pytest.mark.parametrize(
    ("cache", "there"), [("writethrough", True), ("directsync", True), ("writeback", False)]
)
@pytest.mark.parametrize(
    "command", ["write -P 7 0 64k", "writev -P 7 0 64k", "aio_write -P 7 0 64k"]
)
def test_write_through_is_stable_with_all_tables(
    command: str, cache: str, there: bool, tmp_path: Path
) -> None:
    """What a loss of power would leave is what the file holds before the image is flushed."""
    path = tmp_path / "disk.qcow2"
    plan_creation(str(path), MIB, format="qcow2", options={}).run()
    session = Session(lambda settings: open_image(str(path), readonly=False, cache=settings.cache))
    session.open(Settings(str(path), cache=cache))
    run_line(session, command)
    session.finish_pending()
    left = MemoryStore(path.read_bytes())
    session.close()
    with images.open_image(left, readonly=True) as image:
        assert image.read(0, 65536) == bytes([7 if there else 0]) * 65536


# -- breakpoints ---------------------------------------------------------------------------------


def over_blkdebug() -> Session:
    session = session_of(RawImage(Faults(MemoryStore(MIB)), readonly=False))
    assert run_line(session, "break pwritev A")
    return session


def test_a_request_is_held_and_let_go(capsys: pytest.CaptureFixture[str]) -> None:
    with over_blkdebug() as session:
        assert run_line(session, "aio_write -q -P 1 0 512")
        assert run_line(session, "wait_break A")
        assert run_line(session, "write -q -P 2 512 512")
        assert run_line(session, "read -q -P 0 0 512")
        assert run_line(session, "resume A")
        assert run_line(session, "aio_flush")
        assert run_line(session, "read -q -P 1 0 512")
        assert run_line(session, "read -q -P 2 512 512")
    assert capsys.readouterr().out == (
        "blkdebug: Suspended request 'A'\nblkdebug: Resuming request 'A'\n"
    )


def test_a_breakpoint_that_is_removed_holds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with over_blkdebug() as session:
        assert run_line(session, "remove_break A")
        assert run_line(session, "write -q 0 512")
        assert not run_line(session, "remove_break A")
        assert not run_line(session, "resume A")
        assert not run_line(session, "break lunch A")
        assert not run_line(session, "wait_break A")  # nothing is under way
    assert capsys.readouterr().out.splitlines() == [
        "Could not remove breakpoint A: No such file or directory",
        "Could not resume request: No such file or directory",
        "Could not set breakpoint: No such file or directory",
        "Could not wait for a request: none is under way",
    ]


def test_what_is_held_at_the_end_goes_on() -> None:
    written: list[int] = []

    class Noting(Passing):
        def _write(self, offset: int, view: memoryview) -> None:
            written.append(offset)

    session = session_of(RawImage(Faults(Noting(MemoryStore(MIB))), readonly=False))
    assert run_line(session, "break pwritev A")
    assert run_line(session, "aio_write -q 512 512")
    assert run_line(session, "wait_break A")
    assert written == []
    session.close()
    assert written == [512]


def test_breakpoints_need_a_blkdebug(capsys: pytest.CaptureFixture[str]) -> None:
    with session_of(RawImage(MemoryStore(MIB), readonly=False)) as session:
        assert not run_line(session, "break pwritev A")
    assert "Operation not supported" in capsys.readouterr().out
