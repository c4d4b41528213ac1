"""Exports from sources: opened once however many clients ask, closed a moment after the last.

The moment is for clients that ask about an export, leave, and come back to use it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Executor

    from vdisk.nbd_serving.export import Export
    from vdisk.nbd_serving.sources import ExportSource
    from vdisk.nbd_serving.statistics import Statistics

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

log = logging.getLogger("vdisk.nbd_server")

LINGER_SECONDS: Final = 1.0
"""How long an export stays open that nobody uses."""


class Leases:
    """The exports of ``sources`` that are open now, by name.

    ``statistics``: where each goes on counting when it is opened again.
    """

    def __init__(
        self,
        sources: Sequence[ExportSource],
        workers: Executor,
        statistics: dict[str, Statistics],
    ) -> None:
        self._sources = sources
        self._workers = workers
        self._statistics = statistics
        self._homes: dict[str, ExportSource] = {}
        self._changing: dict[str, asyncio.Task[None]] = {}
        self.opened: dict[str, Export] = {}

    async def names(self) -> list[tuple[str, str]]:
        """(name, description) of what the sources have; a source that cannot tell has nothing."""
        listed: list[tuple[str, str]] = []
        for source in self._sources:
            try:
                listed += await self._in_worker(source.names)
            except VdiskError as error:
                log.warning("a source of exports cannot be listed: %s", error)
        return listed

    async def open(self, name: str) -> Export | None:
        """The export ``name`` of the first source that has it."""
        while (task := self._changing.get(name)) is not None:
            await asyncio.wait([task])
        if name not in self.opened and self._sources:
            # The image is opened even if the client leaves meanwhile: it is closed like others.
            await asyncio.shield(self._change(name, self._open(name)))
        return self.opened.get(name)

    def perhaps_unused(self, export: Export) -> None:
        """Close an export of ours in a moment, if nobody uses it then."""
        if self.opened.get(export.name) is export and not (export.clients or export.jobs):
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._close_unused, export)

    def _close_unused(self, export: Export) -> None:
        ours = self.opened.get(export.name) is export and export.name not in self._changing
        if ours and not (export.clients or export.jobs):
            self._change(export.name, self._close(export))

    async def close(self) -> None:
        """Close everything, used or not."""
        while self._changing:
            await asyncio.wait(list(self._changing.values()))
        for export in list(self.opened.values()):
            await self._change(export.name, self._close(export))

    def _change(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Open or close ``name``: one thing at a time."""
        task = asyncio.ensure_future(work)
        self._changing[name] = task
        task.add_done_callback(lambda _: self._changing.pop(name, None))
        return task

    async def _open(self, name: str) -> None:
        for source in self._sources:
            export = await self._in_worker(source.open, name)
            if export is not None:
                export.statistics = self._statistics.setdefault(name, export.statistics)
                self.opened[name], self._homes[name] = export, source
                self.perhaps_unused(export)
                return

    async def _close(self, export: Export) -> None:
        del self.opened[export.name]
        source = self._homes.pop(export.name)
        try:
            await self._in_worker(source.close, export)
        except VdiskError as error:
            log.error("export %r was not closed well: %s", export.name, error)

    async def _in_worker(
        self, function: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, function, *arguments)
