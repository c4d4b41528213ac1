"""What the commands of the human monitor are made of: their words, and whom they speak to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.monitor.control import MachineControl

    Run = Callable[["Context", Sequence[str]], str]


@dataclass
class Context:
    """``cpu``: the processor that commands look at."""

    machine: MachineControl
    cpu: int = 0


@dataclass(frozen=True)
class HumanCommand:
    """``parameters``: as help shows them; ``[name]`` is optional, ``[-f]`` a flag, a last
    ``name…`` takes all the words that are left."""

    parameters: str
    help: str
    run: Run

    def usage(self, name: str) -> str:
        """The line of ``help``."""
        return f"{name} {self.parameters}".rstrip() + f" -- {self.help}\n"

    def check(self, name: str, words: list[str]) -> list[str]:
        """The words with a flag first ("" where it is left out).  Raises InvalidRequestError."""
        expected = self.parameters.split()
        flags: list[str] = []
        if expected and expected[0].startswith("[-"):
            flag = expected.pop(0).strip("[]")
            flags = [words.pop(words.index(flag)) if flag in words else ""]
        needed = [one for one in expected if not one.startswith("[")]
        hint = f'\nTry "help {name}" for more information'
        if len(words) < len(needed):
            raise InvalidRequestError(f"{name}: {needed[len(words)]} expected{hint}")
        if len(words) > len(expected) and not self.parameters.endswith("…"):
            raise InvalidRequestError(f"{name}: extraneous characters at the end of line{hint}")
        return flags + words


def number(text: str) -> int:
    """A number as C writes it.  Raises InvalidRequestError."""
    try:
        return int(text, 0)
    except ValueError:
        raise InvalidRequestError(f"invalid number: {text}") from None
