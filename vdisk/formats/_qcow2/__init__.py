"""The parts of the qcow2 format; :mod:`vdisk.formats.qcow2` is their face."""
