"""What a target is, and which there are.

A target is a module of :mod:`fuzz.targets`; the first line of its docstring is the invariant::

    seeds() -> {name: input}          valid inputs to begin with
    mutate(data, rng) -> data         a neighbour of an input, mostly valid
    run(data)                         returns; any exception is a defect

``run`` is called inside :func:`fuzz.limits.limited` unless the module sets ``LIMITED = False``,
because it starts other programs and sets the limits itself.  ``LONGEST``: bytes of an input.
``SLOWNESS``: how many times the usual time an input may take, with the reason beside it.
``prepare()``: makes what all inputs share, outside of any input's limits.
"""

from __future__ import annotations

import gzip
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fuzz import targets
from fuzz.limits import limited

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping

CORPUS = Path(__file__).parent / "corpus"
PACKED = ".gz"


class Target(NamedTuple):
    """A target by name."""

    name: str
    invariant: str
    seeds: Callable[[], Mapping[str, bytes]]
    mutate: Callable[[bytes, random.Random], bytes]
    run: Callable[[bytes], None]
    longest: int
    limited: bool
    slowness: float
    prepare: Callable[[], None]

    def try_input(self, data: bytes, slowness: float = 1.0) -> None:
        """Run one input inside the limits; whatever it raises is a defect."""
        if not self.limited:
            self.run(data)
            return
        self.prepare()
        with limited(slowness * self.slowness):
            self.run(data)

    def corpus(self) -> Iterator[tuple[str, bytes]]:
        """The inputs in the tree, by file name."""
        for path in sorted((CORPUS / self.name).glob("*")):
            yield path.name, read_input(path)

    def inputs(self) -> list[bytes]:
        """Everything to begin with."""
        return [*self.seeds().values(), *(data for _, data in self.corpus())]


def read_input(path: Path) -> bytes:
    """An input from its file, which may be packed."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == PACKED else data


def write_input(folder: Path, name: str, data: bytes) -> str:
    """Put an input into a corpus, packed if that makes it much smaller; the file's name."""
    packed = gzip.compress(data, mtime=0)
    if len(packed) * 2 < len(data):
        name, data = name + PACKED, packed
    folder.joinpath(name).write_bytes(data)
    return name


def stored_size(data: bytes) -> int:
    """Bytes that an input takes in the tree."""
    return min(len(data), len(gzip.compress(data)))


def names() -> list[str]:
    """The names of all targets."""
    return sorted(module.name for module in pkgutil.iter_modules(targets.__path__))


def load(name: str) -> Target:
    """Import one target, and what it is for."""
    module = importlib.import_module(f"{targets.__name__}.{name}")
    assert module.__doc__ is not None
    return Target(
        name=name,
        invariant=module.__doc__.partition("\n")[0],
        seeds=module.seeds,
        mutate=module.mutate,
        run=module.run,
        longest=module.LONGEST,
        limited=getattr(module, "LIMITED", True),
        slowness=getattr(module, "SLOWNESS", 1.0),
        prepare=getattr(module, "prepare", lambda: None),
    )
