"""What the arguments of ``vdisk-nbd serve`` offer: images opened, filtered, named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vdisk.cli.options import image_name, warn
from vdisk.errors import InvalidRequestError, NotFoundError, UnsupportedFeatureError
from vdisk.nbd_server import DirectoryOfImages, Export, Throttle
from vdisk.opening import Backing, open_image
from vdisk.stores import CacheMode
from vdisk.units import parse_size

if TYPE_CHECKING:
    import argparse
    from contextlib import ExitStack

    from vdisk.block import BlockDevice
    from vdisk.options import Secrets

Wrapper = "Callable[[BlockDevice], BlockDevice]"


class Offer:
    """Builds exports as the options say; what it opened is closed by ``stack``."""

    def __init__(self, args: argparse.Namespace, secrets: Secrets, stack: ExitStack) -> None:
        self._args = args
        self._secrets = secrets
        self._stack = stack
        self._cache = cache_mode(args)
        self.exports: list[Export] = []
        self.sources: list[DirectoryOfImages] = []
        self._check()

    def _check(self) -> None:
        args = self._args
        if args.load_snapshot and (args.snapshot or args.copy_on_read):
            raise InvalidRequestError("an internal snapshot (-l) can only be read")
        if args.detect_zeroes == "unmap" and args.discard not in ("unmap", "on"):
            raise InvalidRequestError("--detect-zeroes=unmap needs --discard=unmap")
        if args.partition is not None and (args.offset != "0" or args.size):
            raise InvalidRequestError("--partition sets the offset and size itself")

    def add(self, names: list[str]) -> None:
        """Open every image, and every directory as a source of images."""
        given = self._args.export_name
        if given is not None and len(names) > 1:
            raise InvalidRequestError("--export-name names one export, and there are several")
        for name in names:
            if not self._args.image_opts and os.path.isdir(name):
                self.sources.append(DirectoryOfImages(name, self._open_found))
                continue
            several = os.path.basename(name) if len(names) > 1 else ""
            self._add_image(name, several if given is None else given)

    def _add_image(self, name: str, export_name: str) -> None:
        image = self._stack.enter_context(self._open(name))
        self.exports.append(self._export(export_name, self._refined(image)))
        if self._args.snapshots:
            for snapshot, view in _snapshot_views(image):
                self._stack.enter_context(view)
                self.exports.append(self._snapshot_export(f"{export_name}@{snapshot}", view))

    def _open_found(self, path: str, name: str) -> Export:
        """An image of a directory; closing the export's device closes it."""
        image = self._open(path)
        try:
            return self._export(name, self._refined(image))
        except BaseException:
            image.close()
            raise

    def _open(self, name: str) -> BlockDevice:
        args = self._args
        return open_image(
            image_name(args, name, args.format),
            readonly=args.read_only or args.snapshot or bool(args.load_snapshot),
            format=args.format,
            cache=self._cache,
            backing=Backing.REFUSE if args.no_backing else Backing.FOLLOW,
            secrets=self._secrets,
            warn=warn,
        )

    def _refined(self, image: BlockDevice) -> BlockDevice:
        """The image as the options change it, from the inside out."""
        args, device = self._args, image
        if args.load_snapshot:
            device = _load_snapshot(device, args.load_snapshot)
        if args.snapshot:
            from vdisk.opening.overlay import temporary_overlay

            device = temporary_overlay(device)
        if args.copy_on_read:
            from vdisk.filters.copy_on_read import CopyOnRead

            device = CopyOnRead(device)
        if args.detect_zeroes != "off":
            from vdisk.filters.detect_zeroes import DetectZeroes

            device = DetectZeroes(device, unmap=args.detect_zeroes == "unmap")
        return self._window(device)

    def _window(self, device: BlockDevice) -> BlockDevice:
        args = self._args
        offset = parse_size(args.offset)
        size = None if args.size is None else parse_size(args.size)
        if args.partition is not None:
            from vdisk.nbd_serving.partitions import find_partition

            offset, size = find_partition(device, args.partition)
        if not offset and size is None:
            return device
        from vdisk.filters.window import Window

        return Window(device, offset, size)

    def _export(self, name: str, device: BlockDevice) -> Export:
        args = self._args
        return Export(
            name,
            device,
            description=args.description,
            read_only=device.readonly or args.read_only,
            discard=args.discard in ("unmap", "on"),
            write_through=CacheMode.parse(self._cache).write_through,
            allocation_depth=args.allocation_depth,
            bitmaps=args.bitmap,
            allow=self._rules_for(name),
            throttle=self._throttle(),
        )

    def _snapshot_export(self, name: str, view: BlockDevice) -> Export:
        return Export(
            name,
            view,
            description=self._args.description,
            allow=self._rules_for(name),
            allocation_depth=self._args.allocation_depth,
            throttle=self._throttle(),
        )

    def _rules_for(self, export_name: str) -> list[str]:
        """The rules of --allow-export for it."""
        given = [setting.partition("=") for setting in self._args.allow_export]
        return [rule for name, _equals, rule in given if name == export_name]

    def _throttle(self) -> Throttle | None:
        args = self._args
        bps = parse_size(args.bps) if args.bps else 0
        return Throttle(iops=args.iops, bps=bps) if args.iops or bps else None


def cache_mode(args: argparse.Namespace) -> str:
    """The mode that --cache or -n chooses."""
    if args.nocache and args.cache not in (None, "none"):
        raise InvalidRequestError("-n is --cache=none: give one of them")
    return "none" if args.nocache else args.cache or "writeback"


def _snapshots(image: BlockDevice) -> list[Any]:
    snapshots = getattr(image, "snapshots", None)
    if snapshots is None:
        raise UnsupportedFeatureError("this format has no internal snapshots", path=image.name)
    found: list[Any] = snapshots()
    return found


def _snapshot_views(image: BlockDevice) -> list[tuple[str, BlockDevice]]:
    """Every internal snapshot, by name (by id where that is empty or taken)."""
    views: dict[str, BlockDevice] = {}
    for snapshot in _snapshots(image):
        name = snapshot.name if snapshot.name and snapshot.name not in views else snapshot.id
        views[name] = image.open_snapshot(snapshot.id)  # type: ignore[attr-defined]
    return list(views.items())


def _load_snapshot(image: BlockDevice, wanted: str) -> BlockDevice:
    """The snapshot that -l names: by ``snapshot.id``, ``snapshot.name``, or either."""
    snapshots = _snapshots(image)
    fields = dict(part.partition("=")[::2] for part in wanted.split(","))
    if fields.keys() <= {"snapshot.id", "snapshot.name"}:
        fits = [
            item
            for item in snapshots
            if item.id == fields.get("snapshot.id", item.id)
            and item.name == fields.get("snapshot.name", item.name)
        ]
    else:
        fits = [item for item in snapshots if item.id == wanted] or [
            item for item in snapshots if item.name == wanted
        ]
    if not fits:
        raise NotFoundError(f"no snapshot {wanted!r}", path=image.name)
    view = image.open_snapshot(fits[0].id)  # type: ignore[attr-defined]
    view.owns_image = True
    opened: BlockDevice = view
    return opened
