"""``--object secret``: passphrases in the clear, in files, in base64, encrypted."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from vdisk.cli.objects import MAX_SECRET, read_objects
from vdisk.errors import AuthenticationError, InvalidRequestError, VdiskError
from vdisk.stores._nbd.tls import credentials_of

if TYPE_CHECKING:
    from pathlib import Path


def test_secrets_in_the_clear() -> None:
    assert read_objects(["secret,id=a,data=sesame", "secret,data=x,,y,id=b"]) == {
        "a": b"sesame",
        "b": b"x,y",
    }


def test_secrets_in_files_keep_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\0sesame\n\xff")
    assert read_objects([f"secret,id=a,file={path}"]) == {"a": b"\0sesame\n\xff"}


def test_secrets_in_base64(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(base64.encodebytes(b"open\0sesame"))
    assert read_objects(
        [f"secret,id=a,file={path},format=base64", "secret,id=b,data=c2VzYW1l,format=base64"]
    ) == {"a": b"open\0sesame", "b": b"sesame"}


def test_a_secret_is_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MAX_SECRET + 1))
    with pytest.raises(InvalidRequestError, match="more than"):
        read_objects([f"secret,id=a,file={path}"])


def encrypted(plain: bytes, key: bytes, iv: bytes) -> str:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    padding = 16 - len(plain) % 16
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return base64.b64encode(
        encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize()
    ).decode()


def test_encrypted_secrets() -> None:
    key, iv = bytes(range(32)), bytes(range(16))
    data = encrypted(b"sesame", key, iv)
    text_key, text_iv = base64.b64encode(key).decode(), base64.b64encode(iv).decode()
    master = f"secret,id=master,data={text_key},format=base64"
    assert read_objects([master, f"secret,id=a,data={data},keyid=master,iv={text_iv}"])["a"] == (
        b"sesame"
    )
    wrong = f"secret,id=master,data={base64.b64encode(bytes(32)).decode()},format=base64"
    with pytest.raises(AuthenticationError):
        read_objects([wrong, f"secret,id=a,data={data},keyid=master,iv={text_iv}"])
    with pytest.raises(InvalidRequestError, match="32 bytes"):
        read_objects(
            ["secret,id=master,data=short", f"secret,id=a,data={data},keyid=master,iv={text_iv}"]
        )
    with pytest.raises(InvalidRequestError, match="'iv'"):
        read_objects([master, f"secret,id=a,data={data},keyid=master"])


def test_credentials_are_kept_for_whoever_uses_them() -> None:
    found = read_objects(
        ["tls-creds-x509,id=t,dir=/etc/a,,b,endpoint=client", "secret,id=s,data=x"],
    )
    assert found == {
        "t": {"qom-type": "tls-creds-x509", "id": "t", "dir": "/etc/a,b", "endpoint": "client"},
        "s": b"x",
    }


@pytest.mark.parametrize(
    ("definitions", "complaint"),
    [
        (["iothread,id=i"], "the types known are secret, tls-creds-x509"),
        (["authz-simple,id=i,identity=x"], "the types known are"),
        (["tls-creds-psk,dir=/etc"], "needs the option 'id'"),
        (["tls-creds-psk,id=a,dir=/etc", "secret,id=a,data=x"], "used twice"),
        (["secret,id=k,data=x,keyid=a,iv=b", "secret,id=a,data=x"], "no secret 'a' before"),
    ],
)
def test_definitions_that_are_refused(definitions: list[str], complaint: str) -> None:
    with pytest.raises(VdiskError, match=complaint):
        read_objects(definitions)


def test_a_command_may_take_more_types() -> None:
    given = ["authz-simple,id=i,identity=CN=x"]
    assert read_objects(given, ["authz-simple"])["i"]["identity"] == "CN=x"  # type: ignore[index]


def test_keys_take_what_all_credentials_take() -> None:
    """``verify-peer``, as QEMU's own test of keys gives it."""
    found = credentials_of(
        "t", {"t": {"qom-type": "tls-creds-psk", "id": "t", "dir": "/d", "verify-peer": "on"}}, {}
    )
    assert found.psk_file == "/d/keys.psk"
