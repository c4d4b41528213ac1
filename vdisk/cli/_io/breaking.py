"""break, wait_break, resume and remove_break: requests held by the ``blkdebug`` below the image."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vdisk.cli._io.arguments import CommandFailed
from vdisk.filters.faults import EVENTS, Faults

if TYPE_CHECKING:
    from vdisk.block import BlockDevice
    from vdisk.cli._io.arguments import Arguments
    from vdisk.cli._io.session import Session
    from vdisk.filters.breakpoints import Breakpoints

_POLL = 0.05
"""Seconds between looks at whether a request is left that may still come to a breakpoint."""


def breakpoints_below(device: BlockDevice | None) -> Breakpoints | None:
    """Those of the nearest blkdebug under ``device``: through filters, and an image's file."""
    while device is not None:
        if isinstance(device, Faults):
            return device.breakpoints
        device = getattr(device, "inner", None) or getattr(device, "file", None)
    return None


def _breakpoints(session: Session, failure: str) -> Breakpoints:
    found = breakpoints_below(session.device)
    if found is None:
        raise _failed(failure, errno.ENOTSUP)
    return found


def _failed(failure: str, number: int) -> CommandFailed:
    return CommandFailed(f"{failure}: {os.strerror(number)}")


def break_at(session: Session, arguments: Arguments) -> None:
    """break event tag"""
    failure = "Could not set breakpoint"
    event, tag = arguments.operands
    found = _breakpoints(session, failure)
    if event not in EVENTS:
        raise _failed(failure, errno.ENOENT)
    found.set(event, tag)


def wait_break(session: Session, arguments: Arguments) -> None:
    """wait_break tag"""
    failure, tag = "Could not wait for a request", arguments.operands[0]
    found = _breakpoints(session, failure)
    while not found.wait(tag, _POLL):
        if not session.has_pending and not found.is_held(tag):  # in QEMU it waits for ever
            raise CommandFailed(f"{failure}: none is under way")
    print(f"blkdebug: Suspended request '{tag}'")


def resume(session: Session, arguments: Arguments) -> None:
    """resume tag"""
    failure, tag = "Could not resume request", arguments.operands[0]
    if not _breakpoints(session, failure).is_held(tag):
        raise _failed(failure, errno.ENOENT)
    print(f"blkdebug: Resuming request '{tag}'")
    _breakpoints(session, failure).resume(tag)


def remove_break(session: Session, arguments: Arguments) -> None:
    """remove_break tag"""
    tag = arguments.operands[0]
    failure = f"Could not remove breakpoint {tag}"
    found = _breakpoints(session, failure)
    if found.is_held(tag):
        print(f"blkdebug: Resuming request '{tag}'")
    if not found.remove(tag):
        raise _failed(failure, errno.ENOENT)
