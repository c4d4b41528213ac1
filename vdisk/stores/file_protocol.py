"""The ``file`` driver: its options, and the store that suits the cache mode.

Options: ``filename``; ``locking`` (auto, on, off); ``aio`` (accepted, since how requests are
queued does not change what is read or written).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.stores import path_of
from vdisk.stores.file import DirectFileStore, FileStore

if TYPE_CHECKING:
    from vdisk.options import OptionBag
    from vdisk.stores import StoreSettings

_LOCKING = ("auto", "on", "off")
_AIO = ("threads", "native", "io_uring")


class FileProtocol:
    """Opens files and block devices."""

    def parse_name(self, name: str) -> dict[str, Any]:
        return {"driver": "file", "filename": name.removeprefix("file:")}

    def open(self, options: OptionBag, settings: StoreSettings) -> FileStore:
        path = path_of(options.required("filename"))
        locking = options.choice("locking", _LOCKING, "auto")
        options.choice("aio", _AIO, "threads")
        options.finish()
        store = DirectFileStore if settings.cache.direct else FileStore
        return store(
            path,
            readonly=settings.readonly,
            locked=locking != "off" and not settings.force_share,
            write_through=settings.cache.write_through,
            ignore_flush=settings.cache.no_flush,
        )


PROTOCOL = FileProtocol()
