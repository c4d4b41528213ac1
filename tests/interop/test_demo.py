"""The demonstration of ``make demo`` runs to its end, on a small directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tools.peers import requires_peer

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@requires_peer("mke2fs")
def test_the_demonstration_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "file").write_bytes(b"content" * 10_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, DEMO, tree],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(scratch)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the file system's label, read through the image: demo" in done.stdout
    assert list(scratch.iterdir()) == []
