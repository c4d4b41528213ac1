"""The chips of the machine, one file each, from their data sheets.

A device is given what it needs (bus, memory, clock, lines) and knows nothing of the machine, of
processors or of accelerators.
"""
