"""The parts of :mod:`vdisk.vm.loader`: one file for each boot protocol."""
