"""Controlling a machine: the QEMU Machine Protocol for programs, a prompt for people."""
