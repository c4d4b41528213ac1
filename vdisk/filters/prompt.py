"""Which devices answer at once: a question that looks through every layer of a stack."""

from __future__ import annotations

from vdisk.block import BlockDevice
from vdisk.filters.attended import Attended
from vdisk.filters.copy_on_read import CopyOnRead
from vdisk.filters.throttle import Throttled
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore


def is_prompt(device: BlockDevice) -> bool:
    """Whether a small request to ``device`` is a few system calls on local files.

    Only such a device is used by a thread that others wait for, as a server's event loop is, or
    a processor of a machine.  What leads over a network, waits for the disk at each write, or
    decrypts, is left to worker threads.
    """
    if isinstance(device, FileStore):
        return device.prompt
    if isinstance(device, MemoryStore):
        return True
    if isinstance(device, Attended | CopyOnRead | Throttled):  # a write may wait
        return False
    if not device.verbatim or getattr(device, "encryption", None) is not None:
        return False
    children = [
        child
        for role in ("file", "data_file", "backing", "inner", "image")
        if isinstance(child := getattr(device, role, None), BlockDevice)
    ]
    return bool(children) and all(map(is_prompt, children))
