"""NBD URIs: the specification's examples, libnbd's, and wrong ones."""

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.nbd.uri import NbdUri, TlsType, Transport, format_uri, is_nbd_uri, parse_uri

UNIX, VSOCK = Transport.UNIX, Transport.VSOCK


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://example.com/disk", NbdUri(host="example.com", export="disk")),
        ("nbd+unix:///disk?socket=sock", NbdUri(UNIX, socket="sock", export="disk")),
        ("nbd://example.com", NbdUri(host="example.com")),
        ("nbd://example.com//disk", NbdUri(host="example.com", export="/disk")),
        (
            "nbd://example.com/hello%20world",
            NbdUri(host="example.com", export="hello world"),
        ),
        ("nbd+unix:///?socket=%00/abstract", NbdUri(UNIX, socket="\0/abstract")),
        ("nbds://example.com:10810", NbdUri(tls=True, host="example.com", port=10810)),
        ("nbd://[::1]:99/x", NbdUri(host="::1", port=99, export="x")),
        ("nbd://[fe80::1%25eth0]", NbdUri(host="fe80::1%eth0")),
        (
            "nbds+unix://alice@/?socket=/tmp/nbd.sock&tls-certificates=certs",
            NbdUri(UNIX, True, socket="/tmp/nbd.sock", user="alice", tls_certificates="certs"),
        ),
        ("nbds+vsock://3:77/e", NbdUri(VSOCK, True, cid=3, port=77, export="e")),
        (
            "nbds://h?tls-hostname=x&tls-psk-file=/k&tls-type=psk&tls-verify-peer=0&x-a=b%26c",
            NbdUri(
                tls=True,
                host="h",
                tls_type=TlsType.PSK,
                tls_hostname="x",
                tls_psk_file="/k",
                tls_verify_peer=False,
                experimental=(("x-a", "b&c"),),
            ),
        ),
        ("nbd://h/%C3%A9", NbdUri(host="h", export="é")),
        ("nbd+unix:///?socket=/run/%FF", NbdUri(UNIX, socket="/run/\udcff")),
    ],
)
def test_uris_and_what_they_mean(text: str, uri: NbdUri) -> None:
    assert parse_uri(text) == uri
    assert format_uri(uri) == str(uri) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("NBD://example.com/", "nbd://example.com"),
        ("nbd+tcp://example.com:77/x", "nbd://example.com:77/x"),
        ("nbd://example.com:10809/", "nbd://example.com"),
        ("nbd://example.com:/", "nbd://example.com"),
        ("nbd+unix://?socket=s", "nbd+unix:///?socket=s"),
        ("nbd+vsock:///", "nbd+vsock://2"),
        ("nbd://h/a%2Fb%3fc", "nbd://h/a/b%3Fc"),
        ("nbd://h/x?tls-verify-peer=1&tls-type=anon&", "nbd://h/x?tls-type=anon&tls-verify-peer=1"),
    ],
)
def test_other_spellings(text: str, canonical: str) -> None:
    assert str(parse_uri(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nbd",
        "nbd:h:10809",
        "nbd:/h",
        "http://h",
        "nbd://h#fragment",
        "nbd://h:port",
        "nbd://h:65536",
        "nbd://h:-1",
        "nbd://h:99999999999999999999",
        "nbd://::1/x",
        "nbd://[::1/x",
        "nbd://[::1]x",
        "nbd://[name]",
        "nbd://h/%zz",
        "nbd://h/%f",
        "nbd://h/%ff",
        "nbd://%ff",
        "nbd://\udcff",
        "nbd://h%00",
        "nbd://..",
        "nbd://" + "a" * 64,
        "nbd://\udcff@h",
        "nbd://h/\ud800",
        "nbd://h?x-a=\udcff",
        "nbds://h?tls-hostname=%ff",
        "nbd://h/%00",
        "nbd://h/" + "x" * 4097,
        "nbd://h?socket=s",
        "nbd://h?unknown=1",
        "nbd://h?tls-type=rot13",
        "nbd://h?tls-verify-peer=yes",
        "nbd://h?tls-hostname=a&tls-hostname=b",
        "nbd+unix:///x",
        "nbd+unix:///x?socket=",
        "nbd+unix://host/x?socket=s",
        "nbd+unix://:99/x?socket=s",
        "nbd+vsock://name/x",
        "nbd+vsock://4294967296",
    ],
)
def test_what_is_no_nbd_uri(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_uri(text)


def test_recognizing_one() -> None:
    assert is_nbd_uri("nbds+vsock://")
    assert is_nbd_uri("NBD://h")
    for text in ("nbd:unix:/s", "/nbd://", "disk.qcow2", "nbd"):
        assert not is_nbd_uri(text)
