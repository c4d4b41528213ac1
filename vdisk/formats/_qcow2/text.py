"""Names in a qcow2 file: UTF-8 by the specification, but any bytes may be met.

Bytes that are not UTF-8 become lone surrogates, as in file names of the operating system, and
the same bytes again when they are written.
"""

from vdisk.errors import InvalidRequestError


def decoded(data: bytes) -> str:
    """The name that stands in the file."""
    return data.decode("utf-8", "surrogateescape")


def encoded(name: str) -> bytes:
    """The bytes of a name; raises :class:`InvalidRequestError` for what no bytes are read as."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name!r} cannot be stored: {error.reason}") from error
