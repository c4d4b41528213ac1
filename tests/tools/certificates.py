"""Certificates for TLS tests, in directories as QEMU, nbdkit and libnbd want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


def make_credentials(folder: Path) -> Path:
    """Directories "server", "client", "stranger" and "foreigner" in ``folder``.

    The stranger's certificate is of an authority that nobody here knows; the foreigner's is,
    too, and that authority is the one that the foreigner trusts.
    """
    authority, other = trustme.CA(), trustme.CA()
    for who, signer, trusted in (
        ("server", authority, authority),
        ("client", authority, authority),
        ("stranger", other, authority),
        ("foreigner", other, other),
    ):
        role = "server" if who == "server" else "client"
        certificate = signer.issue_cert("localhost", common_name=f"{who}.example")
        (folder / who).mkdir()
        trusted.cert_pem.write_to_path(folder / who / "ca-cert.pem")
        certificate.private_key_pem.write_to_path(folder / who / f"{role}-key.pem")
        chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
        (folder / who / f"{role}-cert.pem").write_bytes(chain)
    return folder
