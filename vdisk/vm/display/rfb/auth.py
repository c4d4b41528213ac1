"""VNC authentication (RFC 6143, section 7.2.2): a challenge, encrypted by DES with the password.

The key is the first 8 bytes of the password, each with its bits in reverse order, as the first
VNC had it.  DES and 8 bytes are weak: it keeps honest neighbours out, no attacker.
"""

from __future__ import annotations

import hmac

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError

KEY_LENGTH = 8


def encrypt(password: str, challenge: bytes) -> bytes:
    """The right response to ``challenge``."""
    try:
        from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
        from cryptography.hazmat.primitives.ciphers import Cipher, modes
    except ImportError as error:
        raise UnsupportedFeatureError(
            "a VNC password needs the package cryptography: pip install 'vdisk[crypto]'"
        ) from error
    key = password.encode("utf-8")[:KEY_LENGTH].ljust(KEY_LENGTH, b"\0")
    reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    # Triple DES with one key three times is DES.
    encryptor = Cipher(TripleDES(reversed_bits * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()


class PasswordCheck:
    """Whether a response is that of ``password``."""

    def __init__(self, password: str) -> None:
        if not password:
            raise InvalidRequestError("the VNC password is empty")
        self._password = password
        encrypt(password, bytes(16))  # what is missing is said now, not to the first client

    def __call__(self, challenge: bytes, response: bytes) -> bool:
        return hmac.compare_digest(encrypt(self._password, challenge), response)
