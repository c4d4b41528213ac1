"""The layers of docs/architecture.md hold: who imports whom, read from the source itself."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vdisk

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(vdisk.__file__).parent

_FOUNDATION = "errors units options block tls"
_DEVICES = f"{_FOUNDATION} nbd stores filters"

MAY_IMPORT = {
    "errors": "",
    "units": "errors",
    "options": "errors units",
    "block": "errors",
    "tls": "errors options",
    "listening": "",
    "nbd": _FOUNDATION,
    "stores": f"{_FOUNDATION} nbd",
    "filters": f"{_FOUNDATION} stores",
    "formats": f"{_FOUNDATION} stores filters",
    "opening": f"{_DEVICES} formats",
    "jobs": f"{_DEVICES} formats opening",
    "fileobj": _FOUNDATION,
    "api": f"{_DEVICES} formats opening jobs fileobj",
    "aio": _FOUNDATION,
    "nbd_client": _DEVICES,
    "nbd_server": f"{_DEVICES} formats opening jobs aio listening",
    "emu_blockdev": f"{_DEVICES} formats opening",
    "vm": f"{_DEVICES} formats opening jobs emu_blockdev listening",
    "cli": f"{_DEVICES} formats opening jobs fileobj api aio nbd_client nbd_server vm",
}
"""For each part of the package, the parts below it (itself is always allowed)."""

ONE_PART = {
    "nbd_serving": "nbd_server",
    "nbd_link": "nbd_client",
    "emu_block": "emu_blockdev",
}
"""Modules and packages that are the inside of another part."""

WITHOUT_ASYNCIO = (
    *("block", "stores", "filters", "formats", "nbd", "opening", "jobs"),
    "emu_blockdev",
)
SANS_IO = ("socket", "ssl", "select", "selectors", "asyncio", "threading")


def modules(part: str) -> list[Path]:
    """The source files of one part: packages or modules of ``vdisk``."""
    found: list[Path] = []
    for name in (part, *(inside for inside, outside in ONE_PART.items() if outside == part)):
        found += PACKAGE.glob(f"{name}.py")
        found += sorted((PACKAGE / name).rglob("*.py"))
    return found


def imported(path: Path) -> Iterator[str]:
    """The absolute names of everything that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which layer they reach"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str | None:
    """``formats`` of ``vdisk.formats.raw``; None for what is not ours."""
    words = name.split(".")
    if words[0] != "vdisk" or len(words) < 2:
        return None
    return ONE_PART.get(words[1], words[1])


def existing_parts() -> list[str]:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
    found |= {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    return sorted({ONE_PART.get(name, name) for name in found - {"__init__"}})


def test_every_part_has_a_place() -> None:
    assert set(existing_parts()) <= MAY_IMPORT.keys()


@pytest.mark.parametrize("part", existing_parts())
def test_arrows_point_down(part: str) -> None:
    allowed = {part, *MAY_IMPORT[part].split(), "__version__"}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in modules(part)
        for name in imported(path)
        if part_of(name) not in {None, *allowed}
    ]
    assert not wrong


def test_the_rules_themselves_point_down() -> None:
    parts = list(MAY_IMPORT)
    for position, part in enumerate(parts):
        assert set(MAY_IMPORT[part].split()) <= set(parts[:position]), part


@pytest.mark.parametrize("part", WITHOUT_ASYNCIO)
def test_the_core_is_synchronous(part: str) -> None:
    for path in modules(part):
        assert not any(name.split(".")[0] == "asyncio" for name in imported(path)), path


def test_nbd_does_no_io() -> None:
    for path in modules("nbd"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & set(SANS_IO), path


def test_devices_know_nothing_of_processors() -> None:
    for path in (PACKAGE / "vm" / "devices").rglob("*.py"):
        for name in imported(path):
            assert not name.startswith(("vdisk.vm.cpu", "vdisk.vm.accel", "vdisk.vm.machine")), path


HEAVY = {
    "asyncio",
    "construct",
    "cryptography",
    "ctypes",
    "dataclasses",
    "inspect",
    "logging",
    "numpy",
    "socket",
    "subprocess",
    "tqdm",
    "zstandard",
}


def loaded(code: str, folder: Path) -> set[str]:
    """The modules that a Python has after this."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n' + ' '.join(sys.modules))"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.decode().splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import vdisk",
        "from vdisk.cli.main import main; main(['info', 'disk.qcow2'])",
        "from vdisk.cli.main import main; main(['info', '--output=json', 'disk.raw'])",
        "import vdisk; vdisk.open('disk.qcow2').close()",
    ],
)
def test_start_up_imports_nothing_heavy(code: str, tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.qcow2", 1 << 20, format="qcow2")
    vdisk.create(tmp_path / "disk.raw", 1 << 20)
    # From Python 3.14 on, argparse itself loads some of it.
    given = loaded("import argparse; argparse.ArgumentParser().parse_args([])", tmp_path)
    assert not HEAVY & (loaded(code, tmp_path) - given)
