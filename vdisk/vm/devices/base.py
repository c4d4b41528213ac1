"""What every chip has: a name, a reset, and a state that can be saved and loaded.

A device names the attributes that make up its state in :attr:`Device.SAVED`; saving and loading
is then done here, by what the attribute holds::

    int, bool, str, None          themselves
    bytes                         themselves
    bytearray, list               of the same length: register files, memories
    deque                         of any length up to its ``maxlen``: FIFOs
    dict                          with the same keys
    IrqLine                       its level, driven again when loaded
    Timer                         its deadline, or None
    anything with save_state      the state of a part

Saved machines are untrusted input (they live in disk images): what does not have the shape of
this device's state is refused with :class:`CorruptImageError`, and ``restored`` is where a
device refuses values that its registers cannot hold.

All entry points run with ``bus.lock`` held.  Time comes from a clock and randomness from an
argument, so that a run can be repeated bit for bit.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from vdisk.errors import CorruptImageError
from vdisk.vm.clock import Timer
from vdisk.vm.irq import IrqLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Read, Write

State: TypeAlias = dict[str, Any]
"""A saved state: int, bool, str, bytes, None, and lists and dictionaries (by str) of these."""

LARGEST_STATE_INT = 1 << 128  # wider than any register or time


class Device:
    """One chip, or one part of it that has a state of its own.

    ``load_order``: devices are loaded in this order.  Loading drives the lines again; interrupt
    controllers (1) come after those who drive them, local APICs (2) after those, so that an edge
    seen while loading does not stay behind as an interrupt.
    """

    SAVED: ClassVar[tuple[str, ...]] = ()
    name: str = "device"
    load_order: int = 0

    def reset(self) -> None:
        """The state after RESET#."""
        raise NotImplementedError

    def save_state(self) -> State:
        """Everything that a saved machine needs of this device."""
        return {field.lstrip("_"): _saved(getattr(self, field)) for field in self.SAVED}

    def load_state(self, state: State) -> None:
        """Become what was saved; raises :class:`CorruptImageError` where that cannot be."""
        if not isinstance(state, dict):
            raise CorruptImageError(f"the saved state of {self.name} is no dictionary")
        for field in self.SAVED:
            key = field.lstrip("_")
            if key not in state:
                raise CorruptImageError(f"the saved state of {self.name} has no {key}")
            value = _loaded(getattr(self, field), state[key], f"{self.name}.{key}")
            setattr(self, field, value)
        self.restored()

    def restored(self) -> None:
        """Called after loading: refuse what cannot be, derive what is not saved."""

    def require(self, condition: bool, what: str) -> None:
        """For :meth:`restored`: raise :class:`CorruptImageError` unless the condition holds."""
        if not condition:
            raise CorruptImageError(f"the saved state of {self.name} is impossible: {what}")


def bytewise_read(read: Callable[[int], int]) -> Read:
    """For a chip on an 8-bit bus: a wide read is several of a byte each, lowest first."""

    def wide(offset: int, size: int) -> int:
        if size == 1:
            return read(offset)
        return sum(read(offset + place) << 8 * place for place in range(size))

    return wide


def bytewise_write(write: Callable[[int, int], None]) -> Write:
    """For a chip on an 8-bit bus: a wide write is several of a byte each, lowest first."""

    def wide(offset: int, size: int, value: int) -> None:
        for place in range(size):
            write(offset + place, value >> 8 * place & 0xFF)

    return wide


def _saved(value: object) -> Any:
    """The form in which an attribute is saved; see the module's docstring."""
    if value is None or isinstance(value, int | str | bytes | bytearray):
        return bytes(value) if isinstance(value, bytearray) else value
    if isinstance(value, list | deque):
        return [_saved(item) for item in value]
    if isinstance(value, dict):
        return {key: _saved(item) for key, item in value.items()}
    if isinstance(value, IrqLine):
        return value.level
    if isinstance(value, Timer):
        return value.deadline
    if isinstance(value, Device):
        return value.save_state()
    raise TypeError(f"{type(value).__name__} cannot be part of a saved state")


def _loaded(current: object, saved: Any, where: str) -> object:
    """What the attribute that now is ``current`` becomes."""
    if isinstance(current, IrqLine):
        current.set(_checked(saved, bool, where))
    elif isinstance(current, Timer):
        _load_timer(current, saved, where)
    elif isinstance(current, Device):
        current.load_state(saved)
    elif isinstance(current, bytearray | list):
        _load_array(current, saved, where)
    elif isinstance(current, deque):
        _load_queue(current, saved, where)
    elif isinstance(current, dict):
        if _checked(saved, dict, where).keys() != current.keys():
            raise CorruptImageError(f"saved state: {where} has other keys")
        for key in current:
            current[key] = _loaded(current[key], saved[key], f"{where}.{key}")
    elif current is None:
        raise TypeError(f"{where}: an attribute that may be None needs a load_state of its own")
    else:
        return _checked(saved, type(current), where)
    return current


def _checked(saved: Any, wanted: type[Any], where: str) -> Any:
    """``saved``, which has to be of this type exactly (True is no integer here)."""
    if type(saved) is not wanted:
        raise CorruptImageError(f"saved state: {where} is no {wanted.__name__}")
    if wanted is int and abs(saved) >= LARGEST_STATE_INT:
        raise CorruptImageError(f"saved state: {where} is out of range")
    return saved


def _load_timer(timer: Timer, saved: Any, where: str) -> None:
    if saved is None:
        timer.cancel()
    else:
        timer.arm(_checked(saved, int, where))


def _load_array(current: bytearray | list[Any], saved: Any, where: str) -> None:
    """A register file: of fixed length."""
    values = _checked(saved, bytes if isinstance(current, bytearray) else list, where)
    if len(values) != len(current):
        raise CorruptImageError(f"saved state: {where} has {len(values)} items")
    if isinstance(current, bytearray):
        current[:] = values
    else:
        current[:] = [_loaded(old, new, where) for old, new in zip(current, values, strict=True)]


def _load_queue(current: deque[Any], saved: Any, where: str) -> None:
    """A FIFO of integers."""
    values = _checked(saved, list, where)
    if current.maxlen is not None and len(values) > current.maxlen:
        raise CorruptImageError(f"saved state: {where} has {len(values)} items")
    current.clear()
    current.extend(_checked(value, int, where) for value in values)
