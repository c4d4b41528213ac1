"""JSON, tables and progress as they are printed."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.cli import output
from vdisk.cli.output import Progress, print_json, table

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def printed(value: Any, capsys: pytest.CaptureFixture[str]) -> str:
    print_json(value)
    return capsys.readouterr().out


@given(value=VALUES)
def test_json_says_what_it_was_given(value: Any) -> None:
    assert json.loads("".join(output._json(value, "\n"))) == value


def test_json_is_laid_out_as_qemu_does(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"format": "raw", "virtual-size": 512, "filename": 'é😀\x7f"\\', "flags": []}
    assert printed([value, True, None], capsys) == (
        "[\n"
        "    {\n"
        '        "flags": [\n'
        "        ],\n"
        '        "virtual-size": 512,\n'
        '        "filename": "\\u00E9\\uD83D\\uDE00\\u007F\\"\\\\",\n'
        '        "format": "raw"\n'
        "    },\n"
        "    true,\n"
        "    null\n"
        "]\n"
    )


def test_tables_are_as_wide_as_needed() -> None:
    rows = [("1", "a long name", "5 B"), ("10", "", "10 KiB")]
    assert table(("ID", "NAME", "SIZE"), rows, "ID,SIZE") == (
        "ID  NAME           SIZE\n 1  a long name     5 B\n10               10 KiB"
    )


def test_tables_may_have_columns_of_a_least_width() -> None:
    rows = [("1", "a long name", "5 B")]
    assert table(("ID", "NAME", "SIZE"), rows, "SIZE", least=(4, 6, 6), gap=" ") == (
        "ID   NAME          SIZE\n1    a long name    5 B"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


def test_progress_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    with Progress(True) as progress:
        progress(0, 300)
        progress(1, 300)  # not a hundredth
        progress(100, 300)
        progress(102, 300)
        progress(300, 300)
    shown = ["0.00", "33.33", "100.00"]
    assert screen.getvalue() == "".join(f"    ({each}/100%)\r" for each in shown) + "\n"


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((40, 20)))
    with Progress(True) as progress:
        progress(1, 2)
        progress(2, 2)
    first, last = screen.getvalue().split("\r")[1:]
    assert " 50.0%" in first
    assert "left" in first
    assert abs(first.count("#") - first.count(".") + 1) <= 1  # the percentage has a dot too
    assert "100.0%" in last
    assert last.count("#") > first.count("#")
    assert last.endswith("\n")


def test_progress_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    with Progress(False) as progress:
        progress(1, 2)
    assert screen.getvalue() == ""


def test_progress_of_an_empty_job_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    with Progress(True) as progress:
        progress(0, 0)
    assert screen.getvalue() == "    (100.00/100%)\r\n"
