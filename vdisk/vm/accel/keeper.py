"""What is learned of instructions goes to disk while the machine runs, not only at its end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vdisk.vm.cpu.known_store import InstructionStore
    from vdisk.vm.cpu.translate import Translator

PERIOD = 2.0
"""Seconds between two looks."""
GROWTH = 4
"""While more is learned each time, files are only written for a quarter more than the last had:
some ten are, until a distribution is up."""


class Keeper:
    """Saves what a translator knows: when it has grown much, or some and then no more.

    A file takes some ten milliseconds to write; for the few of them in which the tables are
    copied the lock is held, so that nobody who learns something waits longer.
    """

    def __init__(
        self, store: InstructionStore, translator: Translator, lock: AbstractContextManager[object]
    ) -> None:
        self._store, self._translator, self._lock = store, translator, lock
        self._seen = translator.arena.known.count
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look; does nothing the second time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, name="vdisk-keeper", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Save the rest; nobody learns anything any more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._store.save(self._translator)

    def _keep(self) -> None:
        while not self._stopped.wait(PERIOD):
            self.look()

    def look(self) -> None:
        """Save what is known, if it is time to."""
        count = self._translator.arena.known.count
        is_calm, self._seen = count == self._seen, count
        if is_calm or count > self._store.kept + self._store.kept // GROWTH:
            self._store.save(self._translator, self._lock)
