"""Images behind TLS, by every command that takes an image: --object and tls-creds=ID.

Written against qemu-nbd 7.2, which demands a client's certificate here.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.tools import nbd_server, peers, qemu
from tests.tools.certificates import make_credentials
from tests.tools.peers import requires_peer
from vdisk.cli import main as vdisk_cli
from vdisk.cli import nbd as vdisk_nbd_cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MiB = 1 << 20
SIZE = 8 * MiB

pytestmark = requires_peer("qemu-nbd", "qemu-img", "qemu-io")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_credentials(tmp_path_factory.mktemp("tls"))


class Place:
    """A qcow2 image behind TLS: its path here, and how a client names it."""

    def __init__(self, path: Path, socket: str, credentials: Path) -> None:
        self.path = path
        self.socket = socket
        folder = credentials / "client"
        self.object = ["--object", f"tls-creds-x509,id=t,endpoint=client,dir={folder}"]
        server = f"file.server.type=unix,file.server.path={socket}"
        tls = "file.tls-creds=t,file.tls-hostname=localhost"
        self.options = f"driver=qcow2,file.driver=nbd,{server},{tls}"
        node = {
            "driver": "nbd",
            "server": {"type": "unix", "path": socket},
            "tls-creds": "t",
            "tls-hostname": "localhost",
        }
        self.json = "json:" + json.dumps({"driver": "qcow2", "file": node})


@contextlib.contextmanager
def behind_tls(image: Path, credentials: Path) -> Iterator[Place]:
    server = f"tls-creds-x509,id=s,endpoint=server,dir={credentials / 'server'},verify-peer=on"
    with qemu.nbd(image, "raw", "--object", server, "--tls-creds", "s") as uri:
        yield Place(image, uri.partition("socket=")[2], credentials)


@pytest.fixture
def place(tmp_path: Path, credentials: Path) -> Iterator[Place]:
    path = tmp_path / "disk.qcow2"
    qemu.img("create", "-q", "-f", "qcow2", path, str(SIZE))
    qemu.io(path, "write -P 17 0 2M")
    with path.open("r+b") as file:  # an export does not grow: room for what is written later
        file.truncate(16 * MiB)
    with behind_tls(path, credentials) as found:
        yield found


def vdisk(*words: str | Path, fails: bool = False) -> None:
    status = vdisk_cli.main([str(word) for word in words])
    assert (status != 0) is fails, words


READING = {
    "info": ["info"],
    "check": ["check"],
    "map": ["map"],
    "measure": ["measure", "-O", "raw"],
    "io": ["io", "-r", "-c", "read -P 17 0 2M"],
    "bench": ["bench", "-c", "20"],
    "snapshot": ["snapshot", "-l"],
}
WRITING = {
    "io": ["io", "-c", "write -P 18 1M 3M"],
    "bench": ["bench", "-w", "-c", "20"],
    "snapshot": ["snapshot", "-c", "s"],
    "bitmap": ["bitmap", "--add"],
    "resize": ["resize"],
    "amend": ["amend", "-o", "lazy_refcounts=on"],
    "rebase": ["rebase", "-u", "-b", ""],
    "check": ["check", "-r", "all"],
}
AFTER = {"bitmap": ["b0"], "resize": ["+1M"]}


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("how", ["image-opts", "json"])
def test_commands_that_read(place: Place, command: str, how: str) -> None:
    name = ["--image-opts", place.options] if how == "image-opts" else [place.json]
    vdisk(*READING[command], *place.object, *name)


@pytest.mark.parametrize("command", READING)
def test_an_id_that_no_object_has(
    place: Place, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vdisk(*READING[command], "--image-opts", place.options, fails=True)
    assert "there is no object 't'" in capsys.readouterr().err


@pytest.mark.parametrize("command", WRITING)
def test_commands_that_write(place: Place, command: str) -> None:
    before = place.path.read_bytes()
    words = [*WRITING[command], *place.object, "--image-opts", place.options]
    vdisk(*words, *AFTER.get(command, []))
    if command not in ("check", "rebase", "bench"):
        assert place.path.read_bytes() != before
    report = qemu.img("check", "-U", place.path, check=False)
    assert report.returncode in (0, 3), report.stdout  # 3: the room at the end of the file


def test_convert_compare_and_dd(place: Place, tmp_path: Path) -> None:
    raw, again = tmp_path / "disk.raw", tmp_path / "again.raw"
    vdisk("convert", *place.object, "--image-opts", place.options, "-O", "raw", raw)
    assert raw.read_bytes() == b"\x11" * 2 * MiB + bytes(SIZE - 2 * MiB)
    vdisk(
        "compare", *place.object, "--image-opts", place.options, f"driver=raw,file.filename={raw}"
    )
    vdisk("dd", *place.object, "--image-opts", "-O", "raw", f"if={place.options}", f"of={again}")
    assert again.read_bytes() == raw.read_bytes()
    raw.write_bytes(b"\x21" * MiB + bytes(SIZE - MiB))
    target = ["-n", "--target-image-opts", place.options]
    vdisk("convert", *place.object, "-f", "raw", raw, *target)
    vdisk("compare", *place.object, place.json, raw)


def test_a_backing_file_behind_tls(place: Place, tmp_path: Path) -> None:
    """create, commit, rebase and convert: the id is in the overlay, the object is ours to give."""
    top, plain = tmp_path / "top.qcow2", tmp_path / "plain.qcow2"
    overlay = ["-f", "qcow2", "-F", "qcow2", "-b", place.json, top]
    vdisk("create", "-q", *overlay, fails=True)
    vdisk("create", "-q", *place.object, *overlay)
    vdisk("io", *place.object, "-c", "read -P 17 0 2M", "-c", "write -P 19 1M 1M", top)
    vdisk("info", *place.object, "--backing-chain", top)
    vdisk("convert", *place.object, "-O", "qcow2", top, plain)
    vdisk("commit", "-q", *place.object, top)
    vdisk("io", *place.object, "-r", "-c", "read -P 19 1M 1M", "--image-opts", place.options)
    vdisk("rebase", "-q", *place.object, "-F", "qcow2", "-b", plain, top)
    vdisk("compare", *place.object, top, plain)


def test_vdisk_nbd_takes_credentials_by_id(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"nbd+unix:///?socket={place.socket}"
    tls = [*place.object, "--tls-creds", "t", "--tls-hostname", "localhost"]
    for words in (["list"], ["info"], ["map"]):
        assert vdisk_nbd_cli.main([*words, *tls, uri]) == 0, words
        assert vdisk_nbd_cli.main([*words, uri]) == 1, words
    copy = tmp_path / "copy"
    assert vdisk_nbd_cli.main(["copy", *tls, uri, str(copy)]) == 0
    assert copy.read_bytes() == place.path.read_bytes()
    wrong = [*tls[:-1], "example.org"]
    capsys.readouterr()
    assert vdisk_nbd_cli.main(["info", *wrong, uri]) == 1
    assert "certificate is refused" in capsys.readouterr().err
    for command in ("bench", "connect"):
        assert vdisk_nbd_cli.main([command, uri.replace("nbd+unix", "nbds+unix")]) == 1
        assert "without TLS" in capsys.readouterr().err


def test_without_a_host_the_name_in_the_certificate_must_be_said(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has any certificate of the authority could pretend to be the server."""
    node = place.options.removesuffix(",file.tls-hostname=localhost")
    assert node != place.options
    theirs = qemu.img("info", *place.object, "--image-opts", node, check=False)
    vdisk("info", *place.object, "--image-opts", node, fails=True)
    for said in (theirs.stderr.decode(), capsys.readouterr().err):
        assert "No hostname for certificate validation" in said
    unverified = place.object[1] + ",verify-peer=off"
    vdisk("info", "--object", unverified, "--image-opts", node)


def test_a_served_image_may_itself_be_behind_tls(place: Place, credentials: Path) -> None:
    """One server with two credentials: its own, and those of a client."""
    own = f"tls-creds-x509,id=own,endpoint=server,dir={credentials / 'server'},verify-peer=off"
    words = ["--object", own, "--tls-creds", "own", *place.object, "--image-opts", place.options]
    with nbd_server.process(*words) as (socket, _server):
        creds = f"tls-creds-x509,id=c,endpoint=client,dir={credentials / 'client'}"
        node = f"driver=nbd,server.type=unix,server.path={socket},tls-creds=c"
        peers.run(
            "qemu-io",
            *("--object", creds, "-c", "read -P 17 0 2M", "-c", "write -P 20 0 1M"),
            *("-c", "read -P 20 0 1M", "--image-opts", f"{node},tls-hostname=localhost"),
        )


def test_an_encrypted_key_is_opened_by_a_secret(
    tmp_path: Path, credentials: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryptography.hazmat.primitives import serialization as form

    folder = tmp_path / "encrypted"
    folder.mkdir()
    for name in ("ca-cert.pem", "client-cert.pem"):
        (folder / name).write_bytes((credentials / "client" / name).read_bytes())
    key = form.load_pem_private_key((credentials / "client" / "client-key.pem").read_bytes(), None)
    (folder / "client-key.pem").write_bytes(
        key.private_bytes(
            form.Encoding.PEM,
            form.PrivateFormat.PKCS8,
            form.BestAvailableEncryption(b"sesame"),
        )
    )
    creds = f"tls-creds-x509,id=t,endpoint=client,dir={folder}"
    secret = ["--object", "secret,id=s,data=sesame"]
    image = ["--image-opts", place.options]
    vdisk("info", *secret, "--object", f"{creds},passwordid=s", *image)
    vdisk("info", "--object", creds, *image, fails=True)
    assert "passwordid" in capsys.readouterr().err
    wrong = ["--object", "secret,id=s,data=guess"]
    vdisk("info", *wrong, "--object", f"{creds},passwordid=s", *image, fails=True)
    vdisk("info", "--object", f"{creds},passwordid=none", *image, fails=True)
    assert "No secret with id 'none'" in capsys.readouterr().err
