"""The options that subcommands share, and what they mean for opening an image.

A subcommand adds the groups it has (``add_source`` is in nearly all of them) and later hands
its parsed arguments to :func:`open_source`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, cast

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vdisk.block import BlockDevice
    from vdisk.formats.qcow2 import Qcow2Image
    from vdisk.opening import Backing
    from vdisk.options import Secrets


class Parser(argparse.ArgumentParser):
    """Options and names in any order, as getopt takes them; errors are ours to print."""

    def __init__(self, prog: str, description: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=_formatter,
        )
        self._last: str | None = None
        self._rest: str | None = None
        self._one_dash = False
        self._with_value: dict[str, str] = {}

    def with_value(self, option: str, meaning: str) -> None:
        """``option=VALUE`` is ``meaning=VALUE``; without a value it is an option of its own."""
        self._with_value[option] = meaning

    def take_one_dash(self) -> None:
        """Long options may begin with one dash, as X's and QEMU's do: ``-cdrom FILE``."""
        self._one_dash = True

    def take_rest(self, destination: str, metavar: str, help: str) -> None:
        """Any number of names; what follows "--" belongs to them, whatever it looks like."""
        self._rest = destination
        self.add_argument(destination, nargs="*", metavar=metavar, help=help)

    def take_last(self, destination: str, metavar: str, help: str) -> None:
        """The last argument is ``destination`` also where it is a number with a minus: "-1G"."""
        self._last = destination
        self.add_argument(destination, metavar=metavar, help=help)

    def options(self, *, long: bool) -> list[str]:
        """The options that there are, with one dash or with two."""
        shown = [each for each in self._actions if each.help is not argparse.SUPPRESS]
        known = [option for each in shown for option in each.option_strings]
        return sorted(option for option in known if option.startswith("--") == long)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments, read; raises :class:`InvalidRequestError`."""
        if self._one_dash:
            arguments = [self._with_two_dashes(word) for word in arguments]
        if self._rest is not None and "--" in arguments:
            end = list(arguments).index("--")
            args = self.parse_intermixed_args(self._unabridged(arguments[:end]))
            getattr(args, self._rest).extend(arguments[end + 1 :])
            return args
        arguments = self._unabridged(arguments)
        if self._last is None or not arguments or not _is_negative(arguments[-1]):
            return self.parse_intermixed_args(arguments)
        *others, last = arguments
        args = self.parse_intermixed_args([*others, last[1:]])
        setattr(args, self._last, last)
        return args

    def _unabridged(self, arguments: Sequence[str]) -> list[str]:
        """With the options of :meth:`with_value` under their own names."""
        found = []
        for word in arguments:
            option, equals, value = word.partition("=")
            meaning = self._with_value.get(option) if equals else None
            found.append(f"{meaning}={value}" if meaning else word)
        return found

    def _with_two_dashes(self, word: str) -> str:
        name = word.partition("=")[0]
        long = word[:1] == "-" and len(name) > 2 and f"-{name}" in self._option_string_actions
        return f"-{word}" if long else word

    def error(self, message: str) -> NoReturn:
        raise InvalidRequestError(f"{message}; see '{self.prog} --help'")


def _is_negative(argument: str) -> bool:
    return argument[:1] == "-" and argument[1:2].isdigit()


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Help as wide as the terminal; argparse's own way to find out imports 7 ms of modules."""
    try:
        width = os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ else 80
    except (OSError, ValueError):  # not a terminal, or closed
        width = 80
    return _Formatter(prog, width=max(width - 2, 40))


class _Formatter(argparse.HelpFormatter):
    """Paragraphs as wide as the terminal; those with indented lines (examples) stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        from textwrap import fill

        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            each if "\n  " in f"\n{each}" else fill(" ".join(each.split("\n")), width)
            for each in paragraphs
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        from textwrap import wrap

        return wrap(text, width, break_on_hyphens=False)  # of a name that can be typed


# -- groups of options -----------------------------------------------------------------------


def add_format(
    parser: Parser, flag: str, destination: str, help: str, default: str | None = None
) -> None:
    """``-f`` and others: the format of an image."""
    parser.add_argument(flag, dest=destination, default=default, metavar="FORMAT", help=help)


def add_source(parser: Parser, *, force_share: bool = True) -> None:
    """What says how an existing image is opened: -f, --image-opts, --object, -U, --no-backing."""
    add_format(parser, "-f", "format", "format of the image (default: what it looks like)")
    add_objects(parser)
    parser.add_argument(
        "--image-opts",
        action="store_true",
        help="IMAGE is a list of options: driver=qcow2,file.filename=…",
    )
    parser.add_argument(
        "--no-backing",
        action="store_true",
        help="refuse an image that leads to other files (backing or data file)",
    )
    if force_share:
        parser.add_argument(
            "-U",
            "--force-share",
            action="store_true",
            help="read although another process may be writing",
        )


def add_objects(parser: Parser) -> None:
    """``--object``: secrets and credentials, defined by id."""
    parser.add_argument(
        "--object",
        action="append",
        default=[],
        metavar="TYPE,id=ID,…",
        help="define a secret: secret,id=ID,data=TEXT or file=PATH[,format=raw|base64]; or "
        "credentials for TLS: tls-creds-x509 or tls-creds-psk,id=ID,dir=PATH,endpoint=client",
    )


def add_cache(
    parser: Parser,
    flag: str = "-t",
    destination: str = "cache",
    default: str = "writeback",
    of: str = "the image",
) -> None:
    """``-t`` (of what is written) or ``-T`` (of what is read): the cache mode."""
    parser.add_argument(
        flag,
        dest=destination,
        default=default,
        metavar="CACHE",
        help=f"how {of} is cached: none, writeback, writethrough, directsync or unsafe "
        f"(default {default})",
    )


def add_quiet(parser: Parser) -> None:
    """``-q``: say nothing but errors."""
    parser.add_argument("-q", dest="quiet", action="store_true", help="print errors only")


def add_progress(parser: Parser) -> None:
    """``-p``: show how far the work has come."""
    parser.add_argument("-p", dest="progress", action="store_true", help="show progress")


def add_output(parser: Parser) -> None:
    """``--output``: for people or for programs."""
    parser.add_argument(
        "--output", choices=("human", "json"), default="human", help="form of the answer"
    )


def add_creation_options(parser: Parser) -> None:
    """``-o``: options of the image to be made; may be given several times."""
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help="options of the format; '-o help' lists them",
    )


# -- what they mean --------------------------------------------------------------------------


_program = "vdisk"


def speak_as(program: str) -> None:
    """Name the program that :func:`complain` complains for."""
    global _program
    _program = program


def complain(message: str) -> None:
    """One line on stderr, whatever bytes stand in the names it quotes."""
    line = " ".join(message.splitlines())
    sys.stderr.write(f"{_program}: {line.encode(errors='backslashreplace').decode()}\n")


def warn(message: str) -> None:
    """Tell the user what is worth knowing though nothing failed."""
    complain(f"warning: {message}")


def open_source(
    args: argparse.Namespace,
    name: str,
    *,
    readonly: bool = True,
    cache: str = "writeback",
    backing: Backing | None = None,
    options: Mapping[str, Any] | None = None,
    repairing: bool = False,
) -> BlockDevice:
    """Open ``name`` as the options of :func:`add_source` in ``args`` say.

    ``backing``: what to do about backing files unless --no-backing forbids them.
    """
    from vdisk.opening import Backing, open_image

    if args.no_backing:
        backing = Backing.REFUSE
    return open_image(
        image_name(args, name, args.format),
        readonly=readonly,
        format=args.format,
        cache=cache,
        force_share=getattr(args, "force_share", False),
        backing=backing or Backing.FOLLOW,
        secrets=secrets(args),
        options=options,
        repairing=repairing,
        warn=warn,
    )


def refuse_no_backing(args: argparse.Namespace) -> None:
    """For commands that are about the backing file."""
    if args.no_backing:
        raise InvalidRequestError("this command reads the backing file: leave --no-backing out")


def image_name(
    args: argparse.Namespace, name: str, format: str | None = None
) -> str | dict[str, Any]:
    """``name`` itself, or the tree it spells where --image-opts is given."""
    if not args.image_opts:
        return name
    if format is not None:
        raise InvalidRequestError("--image-opts states the format by driver=…: leave -f out")
    from vdisk.opening.names import parse_image_options

    return parse_image_options(name)


def as_qcow2(image: BlockDevice, what: str) -> Qcow2Image:
    """``image``, which has to be qcow2 because only qcow2 has ``what``."""
    format = getattr(image, "format_name", "raw")
    if format != "qcow2":
        raise UnsupportedFeatureError(
            f"images of format {format} have no {what}: convert it to qcow2", path=image.name
        )
    return cast("Qcow2Image", image)


def secrets(args: argparse.Namespace, others: Sequence[str] = ()) -> Secrets:
    """The passphrases and credentials that --object defines, by id.

    ``others``: types of objects that the command takes besides.
    """
    if not args.object:
        return {}
    from vdisk.cli.objects import read_objects

    return read_objects(args.object, others)


def creation_options(args: argparse.Namespace, format: str) -> dict[str, Any]:
    """What the -o options say, typed as the format declares them.

    ``-o help`` prints the list and leaves with exit status 0.
    """
    from vdisk.opening.creating import parse_create_options

    text = ",".join(args.options)
    if wants_help(args):
        from vdisk.cli.output import print_create_options

        print_create_options(format)
        raise SystemExit(0)
    return parse_create_options(format, text)


def wants_help(args: argparse.Namespace) -> bool:
    """True for ``-o help`` (or ``?``), alone or among other options."""
    return any(part in ("help", "?") for text in args.options for part in text.split(","))
