"""The list of commands, and running one line of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.cli._io import breaking, reading, upkeep, writing
from vdisk.cli._io.arguments import Arguments, CommandFailed, UsageError, parse_words
from vdisk.cli._io.session import complain
from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.cli._io.session import Session


class Command(NamedTuple):
    """One command.

    ``minimum``, ``maximum``: words after the name, options counted, None: any number.
    ``letters``: the options as for getopt(3).  ``details``: lines of its help on their meaning.
    ``needs_image``: works on an open image; ``writes``: on one that is not read-only.
    """

    name: str
    run: Callable[[Session, Arguments], None]
    synopsis: str
    summary: str
    minimum: int = 0
    maximum: int | None = 0
    letters: str = ""
    details: str = ""
    alias: str = ""
    needs_image: bool = True
    writes: bool = False

    @property
    def usage(self) -> str:
        """The line that ``help`` and wrong words show."""
        return f"{self.name} {self.synopsis}".rstrip() + f" -- {self.summary}"


class QuitRequested(Exception):
    """The command ``quit``."""


def _quit(_session: Session, _arguments: Arguments) -> None:
    raise QuitRequested


def _help(_session: Session, arguments: Arguments) -> None:
    """help [command]"""
    if not arguments.operands:
        for command in COMMANDS:
            print(command.usage)
        print("\nUse 'help commandname' for extended help.")
        return
    name = arguments.operands[0]
    found = find(name)
    if found is None:
        raise CommandFailed(f"command {name} not found")
    print(found.usage)
    if found.details:
        print(f"\n{found.details}")


_REPORT = " -C  statistics as numbers separated by commas\n -q  no statistics\n"
_VERIFY = " -P  the byte that all of them should be\n"
_FILL = " -P  the byte to write, instead of 0xcd\n"
_ZERO = " -z  write zeroes the fast way\n -u  with -z: the room may be given back\n -f  and flush\n"
_ASYNC = (
    " -i  do nothing but say so (counted by QEMU as an invalid request)\n\n"
    "Runs beside the commands that follow; aio_flush waits for it and prints its result.\n"
    "Its failure does not count as a failure of vdisk io.\n"
)

COMMANDS = (
    Command("abort", upkeep.abort, "", "end by SIGABRT, as a crash would", needs_image=False),
    Command("aio_flush", upkeep.aio_flush, "", "wait for all asynchronous requests"),
    Command(
        "aio_read",
        reading.aio_read,
        "[-Ciqv] [-P pattern] off len [len..]",
        "read without waiting for the result",
        minimum=2,
        maximum=None,
        letters="CP:iqv",
        details=_REPORT + _VERIFY + " -v  show the bytes\n" + _ASYNC,
    ),
    Command(
        "aio_write",
        writing.aio_write,
        "[-Cfiquz] [-P pattern] off len [len..]",
        "write without waiting for the result",
        minimum=2,
        maximum=None,
        letters="CfiP:quz",
        details=_REPORT + _FILL + _ZERO + _ASYNC,
        writes=True,
    ),
    Command(
        "alloc",
        upkeep.alloc,
        "offset [count]",
        "tell how many bytes are allocated in the image itself",
        minimum=1,
        maximum=2,
        alias="a",
    ),
    Command(
        "break",
        breaking.break_at,
        "event tag",
        "hold the next request that comes to an event of blkdebug",
        minimum=2,
        maximum=2,
        details=(
            "Asynchronous requests only: what aio_flush, or the end, would wait for is resumed by "
            "its tag.\n"
        ),
    ),
    Command("close", upkeep.close, "", "close the image", alias="c"),
    Command(
        "discard",
        writing.discard,
        "[-Cq] off len",
        "tell that bytes are no longer needed",
        minimum=2,
        maximum=None,
        letters="Cq",
        details=_REPORT,
        alias="d",
        writes=True,
    ),
    Command("flush", upkeep.flush, "", "make everything written so far durable", alias="f"),
    Command(
        "help",
        _help,
        "[command]",
        "explain one command or list all",
        maximum=1,
        alias="?",
        needs_image=False,
    ),
    Command("info", upkeep.info, "", "show what the image is", alias="i"),
    Command("length", upkeep.length, "", "show the size of the disk", alias="l"),
    Command("map", upkeep.map_image, "", "show what is allocated in the image itself"),
    Command(
        "open",
        upkeep.open_image,
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open an image",
        minimum=1,
        maximum=None,
        letters="snCro:ki:t:d:U",
        details=(
            " -r  read-only\n"
            " -s  keep changes in a temporary overlay\n"
            " -C  keep what is read from backing files (copy on read)\n"
            " -n  the same as -t none\n"
            " -t  none, writeback, writethrough, directsync or unsafe\n"
            " -d  pass discards on: unmap (on) or ignore (off)\n"
            " -i  threads, native or io_uring; -k the same as -i native\n"
            " -U  without locks, for reading an image in use\n"
            " -o  options of the image: driver=qcow2,file.filename=…\n"
        ),
        alias="o",
        needs_image=False,
    ),
    Command("quit", _quit, "", "leave", maximum=None, alias="q", needs_image=False),
    Command(
        "read",
        reading.read,
        "[-abCqv] [-P pattern [-s off] [-l len]] off len",
        "read bytes",
        minimum=2,
        maximum=None,
        letters="abCl:pP:qs:v",
        details=(
            " -b  from the saved state of the machine\n"
            + _REPORT
            + _VERIFY
            + " -s  where in the bytes read the check begins\n"
            " -l  how many bytes it covers\n"
            " -v  show the bytes\n"
            " -a, -p  nothing (for old scripts)\n"
        ),
        alias="r",
    ),
    Command(
        "readv",
        reading.readv,
        "[-Cqv] [-P pattern] off len [len..]",
        "read into several buffers at once",
        minimum=2,
        maximum=None,
        letters="CP:qv",
        details=_REPORT + _VERIFY + " -v  show the bytes\n",
    ),
    Command(
        "reopen",
        upkeep.reopen,
        "[(-r|-w)] [-c cache] [-o options]",
        "open the image in another way",
        maximum=None,
        letters="c:o:rw",
        details=(
            " -r  read-only\n -w  for writing\n -c  another cache mode\n -o  further options\n"
        ),
    ),
    Command(
        "sigraise",
        upkeep.sigraise,
        "signal",
        "send this process a signal, by number",
        minimum=1,
        maximum=1,
        needs_image=False,
    ),
    Command(
        "remove_break",
        breaking.remove_break,
        "tag",
        "forget a breakpoint, and let go what it holds",
        minimum=1,
        maximum=1,
    ),
    Command(
        "resume",
        breaking.resume,
        "tag",
        "let a request go on that a breakpoint holds",
        minimum=1,
        maximum=1,
    ),
    Command(
        "sleep",
        upkeep.sleep,
        "milliseconds",
        "wait",
        minimum=1,
        maximum=1,
        needs_image=False,
    ),
    Command(
        "truncate",
        upkeep.truncate,
        "[-m prealloc_mode] off",
        "resize the disk",
        minimum=1,
        maximum=3,
        letters="m:",
        details=" -m  off, metadata, falloc or full\n",
        alias="t",
        writes=True,
    ),
    Command(
        "wait_break",
        breaking.wait_break,
        "tag",
        "wait until a breakpoint holds a request",
        minimum=1,
        maximum=1,
    ),
    Command(
        "write",
        writing.write,
        "[-bcCfnquz] [-P pattern | -s source_file] off len",
        "write bytes",
        minimum=2,
        maximum=None,
        letters="bcCfnpP:qs:uz",
        details=(
            " -b  into the saved state of the machine\n"
            " -c  as compressed clusters\n"
            + _REPORT
            + _FILL
            + " -s  a file to write, again and again until the length is reached\n"
            + _ZERO
            + " -n  with -z: fail where zeroing is not faster than writing\n"
            " -p  nothing (for old scripts)\n"
        ),
        alias="w",
        writes=True,
    ),
    Command(
        "writev",
        writing.writev,
        "[-Cfq] [-P pattern] off len [len..]",
        "write from several buffers at once",
        minimum=2,
        maximum=None,
        letters="CfqP:",
        details=_REPORT + _FILL + " -f  and flush\n",
        writes=True,
    ),
)

_BY_NAME = {name: command for command in COMMANDS for name in (command.name, command.alias) if name}


def find(name: str) -> Command | None:
    """The command called ``name``, in full or by its letter."""
    return _BY_NAME.get(name)


def run_line(session: Session, line: str) -> bool:
    """Run one line; True unless it failed, which it has then said.

    Raises :class:`QuitRequested`.
    """
    name, *words = line.split() or [""]
    if not name:
        return True
    command = find(name)
    try:
        if command is None:
            raise CommandFailed(f'command "{name}" not found', to_stderr=True)
        _run(session, command, name, words)
    except CommandFailed as error:
        if error.message:
            (complain if error.to_stderr else print)(error.message)
        if isinstance(error, UsageError) and command is not None:
            print(command.usage)
        return False
    except VdiskError as error:
        complain(f"vdisk io: {error}")
        return False
    return True


def _run(session: Session, command: Command, name: str, words: list[str]) -> None:
    if command.needs_image:
        writable = not session.device.readonly
        if command.writes and not writable:
            raise CommandFailed("vdisk io: Block node is read-only", to_stderr=True)
    _check_count(command, name, len(words))
    command.run(session, parse_words(name, words, command.letters))


def _check_count(command: Command, name: str, count: int) -> None:
    least, most = command.minimum, command.maximum
    if count >= least and (most is None or count <= most):
        return
    if most is None:
        expected = f"at least {least}"
    else:
        expected = f"{least}" if least == most else f"between {least} and {most}"
    raise CommandFailed(
        f"bad argument count {count} to {name}, expected {expected} arguments", to_stderr=True
    )
