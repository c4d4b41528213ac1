"""The inside of :mod:`vdisk.emu_blockdev`: requests, geometry, barriers, workers, counting."""
