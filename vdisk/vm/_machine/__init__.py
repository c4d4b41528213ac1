"""The parts of :mod:`vdisk.vm.machine`: one file for each concern of a whole machine."""
