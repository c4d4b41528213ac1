"""The image that the commands work on, and how it was opened.

Asynchronous requests run in threads; what they have to say is printed by the main thread, when
it asks for it, so that lines never mix.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.cli._io.arguments import CommandFailed
from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future, ThreadPoolExecutor
    from typing import Self

    from vdisk.block import BlockDevice

ASYNC_THREADS = 16
"""Requests of aio_read and aio_write under way at once; more wait their turn."""


class Settings(NamedTuple):
    """How an image is opened.  ``options``: of its top node, as -o and --image-opts say."""

    name: str | None
    format: str | None = None
    readonly: bool = False
    snapshot: bool = False
    copy_on_read: bool = False
    force_share: bool = False
    cache: str = "writeback"
    discard: bool = True
    options: Mapping[str, Any] = {}

    @property
    def write_through(self) -> bool:
        """Every write is stable when it returns, an image's own tables included."""
        from vdisk.stores import CacheMode

        return CacheMode.parse(self.cache).write_through


def complain(message: str) -> None:
    """A line on stderr, after everything already printed on stdout."""
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)


class Session:
    """At most one open image.  ``opener`` turns :class:`Settings` into a device.

    ``image_opts``: what the command ``open`` gets is no name but a list of options.
    """

    def __init__(
        self, opener: Callable[[Settings], BlockDevice], *, image_opts: bool = False
    ) -> None:
        self._opener = opener
        self.image_opts = image_opts
        self._device: BlockDevice | None = None
        self._settings = Settings(None)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[Future[Callable[[], None]]] = []

    @property
    def is_open(self) -> bool:
        """True if there is an image to work on."""
        return self._device is not None

    @property
    def device(self) -> BlockDevice:
        """The open image."""
        if self._device is None:
            raise CommandFailed("no file open, try 'help open'", to_stderr=True)
        return self._device

    @property
    def image(self) -> BlockDevice:
        """The same, without the filter of copy-on-read: for what only a format can do."""
        from vdisk.filters.passing import Passing

        return self.device.inner if isinstance(self.device, Passing) else self.device

    @property
    def settings(self) -> Settings:
        """How the image was opened."""
        return self._settings

    def open(self, settings: Settings) -> None:
        """Open an image where none is open."""
        if self._device is not None:
            raise CommandFailed("vdisk io: file open already, try 'help close'", to_stderr=True)
        name = "" if settings.name is None else f" device {settings.name}"
        self._open(settings, f"can't open{name}: ")

    def _open(self, settings: Settings, complaint: str) -> None:
        try:
            self._device = self._opener(settings)
        except VdiskError as error:
            why = error.reason if error.path and error.path == settings.name else error
            raise CommandFailed(f"vdisk io: {complaint}{why}", to_stderr=True) from error
        self._settings = settings

    def reopen(self, settings: Settings) -> None:
        """Open the same image in another way; if that fails it stays open as it was."""
        before = self._settings
        self.close()
        try:
            self._open(settings, "")
        except CommandFailed:
            self.open(before)
            raise

    def close(self) -> None:
        """Finish what is under way and close the image, if there is one.

        What breakpoints hold goes on: nobody is left to resume it.
        """
        if self._pending:
            from vdisk.cli._io.breaking import breakpoints_below

            if (found := breakpoints_below(self._device)) is not None:
                found.clear()
        self.finish_pending()
        device, self._device = self._device, None
        if device is not None:
            device.close()

    # -- asynchronous requests ---------------------------------------------------------------

    def submit(self, request: Callable[[], Callable[[], None]]) -> None:
        """Run ``request`` in a thread; what it returns is called here to print its result."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(ASYNC_THREADS, "io")
        self._pending.append(self._pool.submit(request))

    @property
    def has_pending(self) -> bool:
        """True while an asynchronous request is under way."""
        return not all(future.done() for future in self._pending)

    def report_finished(self) -> None:
        """Print the results of asynchronous requests that have ended."""
        pending, self._pending = self._pending, []
        for future in pending:
            if future.done():
                _print_result(future.result())
            else:
                self._pending.append(future)

    def finish_pending(self) -> None:
        """Wait for all asynchronous requests and print their results, oldest first."""
        while self._pending:
            _print_result(self._pending.pop(0).result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.close()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def _print_result(report: Callable[[], None]) -> None:
    """A failure is printed too, and is none of the command that happens to run now."""
    try:
        report()
    except CommandFailed as error:
        print(error.message)
