"""The data of options and of their replies, byte by byte."""

import pytest

from vdisk.nbd import options
from vdisk.nbd.options import ExportQuery, InfoExport, MetaContextQuery
from vdisk.nbd.session import BlockSizes, MetaContext
from vdisk.nbd.wire import Info, TransmissionFlag


def test_an_export_query_on_the_wire() -> None:
    query = ExportQuery("disk", frozenset({Info.NBD_INFO_BLOCK_SIZE, Info.NBD_INFO_NAME}))
    data = b"\0\0\0\4disk\0\2\0\1\0\3"
    assert options.build_export_query(query) == data
    assert options.parse_export_query(data) == query


def test_unknown_information_requests_are_ignored() -> None:
    data = b"\0\0\0\0\0\3\0\3\x12\x34\0\0"
    requests = {Info.NBD_INFO_BLOCK_SIZE, Info.NBD_INFO_EXPORT}
    assert options.parse_export_query(data) == ExportQuery("", frozenset(requests))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\1",
        b"\0\0\0\5disk\0\0",
        b"\0\0\0\4disk\0\1",
        b"\0\0\0\4disk\0\1\0\3x",
        b"\0\0\0\4di\0k\0\0",
        b"\0\0\0\2\xff\xff\0\0",
        b"\xff\xff\xff\xff\0\0",
    ],
)
def test_malformed_export_queries(data: bytes) -> None:
    with pytest.raises(ValueError):
        options.parse_export_query(data)


def test_a_meta_context_query_on_the_wire() -> None:
    query = MetaContextQuery("d", ("base:", "x:y"))
    data = b"\0\0\0\1d\0\0\0\2\0\0\0\5base:\0\0\0\3x:y"
    assert options.build_meta_context_query(query) == data
    assert options.parse_meta_context_query(data) == query


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\0\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\1\0\0\0\2x",
        b"\0\0\0\0\0\0\0\0x",
    ],
)
def test_malformed_meta_context_queries(data: bytes) -> None:
    with pytest.raises(ValueError):
        options.parse_meta_context_query(data)


AVAILABLE = (
    "base:allocation",
    "qemu:allocation-depth",
    "qemu:dirty-bitmap:a",
    "qemu:dirty-bitmap:b",
)


@pytest.mark.parametrize(
    ("queries", "listed", "selected"),
    [
        ((), AVAILABLE, ()),
        (("base:",), AVAILABLE[:1], ()),
        (("qemu:",), AVAILABLE[1:], ()),
        (("qemu:dirty-bitmap:",), AVAILABLE[2:], ()),
        (("qemu:dirty-bitmap:b", "base:allocation"), (AVAILABLE[0], AVAILABLE[3]), None),
        (("base:allocation", "base:allocation"), AVAILABLE[:1], None),
        (("base:unknown", "x-nowhere:", "qemu:dirty-bitmap:c"), (), None),
    ],
)
def test_which_contexts_a_query_names(
    queries: tuple[str, ...], listed: tuple[str, ...], selected: tuple[str, ...] | None
) -> None:
    assert options.match_meta_contexts(queries, AVAILABLE, wildcards=True) == listed
    expected = listed if selected is None else selected
    assert options.match_meta_contexts(queries, AVAILABLE, wildcards=False) == expected


@pytest.mark.parametrize("query", ["", "base", ":allocation"])
def test_a_query_without_namespace(query: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        options.match_meta_contexts([query], AVAILABLE, wildcards=True)


def test_a_server_reply_on_the_wire() -> None:
    assert options.build_server("ab", "text") == b"\0\0\0\2abtext"
    assert options.parse_server(b"\0\0\0\2abtext") == ("ab", "text")
    assert options.parse_server(b"\0\0\0\0") == ("", "")
    with pytest.raises(ValueError, match="short"):
        options.parse_server(b"\0\0\0\3ab")


def test_a_meta_context_reply_on_the_wire() -> None:
    context = MetaContext(7, "base:allocation")
    assert options.build_meta_context(context) == b"\0\0\0\7base:allocation"
    assert options.parse_meta_context(b"\0\0\0\7base:allocation") == context


def test_information_on_the_wire() -> None:
    export = InfoExport(0x0102030405060708, TransmissionFlag(3))
    cases = [
        (options.build_info_export(export), b"\0\0\1\2\3\4\5\6\7\x08\0\3", export),
        (options.build_info_name("n"), b"\0\1n", options.InfoName("n")),
        (options.build_info_description("d"), b"\0\2d", options.InfoDescription("d")),
        (
            options.build_info_block_sizes(BlockSizes(1, 4096, 1 << 20)),
            b"\0\3\0\0\0\1\0\0\x10\0\0\x10\0\0",
            BlockSizes(1, 4096, 1 << 20),
        ),
    ]
    for built, data, parsed in cases:
        assert built == data
        assert options.parse_info(data) == parsed
    assert options.parse_info(b"\x12\x34whatever") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        b"\0\0" + bytes(11),
        b"\0\3" + bytes(12),
        b"\0\3\0\0\0\3\0\0\x10\0\0\x10\0\0",
        b"\0\3\0\0\0\1\0\0\1\0\0\x10\0\0",
        b"\0\3\0\0\0\1\0\0\x10\0\0\0\x0f\xff",
        b"\0\3\0\2\0\0\0\2\0\0\0\x10\0\0",
    ],
)
def test_malformed_information(data: bytes) -> None:
    with pytest.raises(ValueError):
        options.parse_info(data)
