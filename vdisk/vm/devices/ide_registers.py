"""Registers and commands of ATA drives, by their names in ATA/ATAPI-6 (T13 1410D), clauses 7, 8.

::

    command block   0 data   1 error / features   2 sector count   3 LBA low   4 LBA mid
                    5 LBA high   6 device   7 status / command
    control block   0 alternate status / device control

Each of registers 1 to 5 is two deep: 48-bit commands take the byte written before, too, and
device control's HOB bit shows it.
"""

from __future__ import annotations

from typing import Final

DATA, ERROR, SECTOR_COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = range(8)
FEATURES, COMMAND = ERROR, STATUS

BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
READY: Final = DRDY | DSC
ICRC, UNC, IDNF, ABRT = 0x80, 0x40, 0x10, 0x04
DEVICE_LBA, DEVICE_DEV = 0x40, 0x10
CONTROL_NIEN, CONTROL_SRST, CONTROL_HOB = 0x02, 0x04, 0x80

REASON_COMMAND, REASON_IN = 1, 2
"""CoD and I/O of the interrupt reason, the sector count of packet commands (8.23.5)."""

SIGNATURE_ATA: Final = (1, 1, 0x00, 0x00)
SIGNATURE_ATAPI: Final = (1, 1, 0x14, 0xEB)
"""Sector count, LBA low, mid, high after a reset (9.12)."""

NOP, DATA_SET_MANAGEMENT, DEVICE_RESET = 0x00, 0x06, 0x08
READ_SECTORS, READ_SECTORS_EXT, READ_DMA_EXT = 0x20, 0x24, 0x25
READ_NATIVE_MAX_EXT, READ_MULTIPLE_EXT = 0x27, 0x29
WRITE_SECTORS, WRITE_SECTORS_EXT, WRITE_DMA_EXT, WRITE_MULTIPLE_EXT = 0x30, 0x34, 0x35, 0x39
WRITE_DMA_FUA_EXT, READ_VERIFY, READ_VERIFY_EXT = 0x3D, 0x40, 0x42
EXECUTE_DEVICE_DIAGNOSTIC, INITIALIZE_DEVICE_PARAMETERS = 0x90, 0x91
PACKET, IDENTIFY_PACKET_DEVICE, SMART = 0xA0, 0xA1, 0xB0
READ_MULTIPLE, WRITE_MULTIPLE, SET_MULTIPLE_MODE = 0xC4, 0xC5, 0xC6
READ_DMA, WRITE_DMA, WRITE_MULTIPLE_FUA_EXT, GET_MEDIA_STATUS = 0xC8, 0xCA, 0xCE, 0xDA
STANDBY_IMMEDIATE, IDLE_IMMEDIATE, STANDBY, IDLE = 0xE0, 0xE1, 0xE2, 0xE3
CHECK_POWER_MODE, SLEEP, FLUSH_CACHE, FLUSH_CACHE_EXT = 0xE5, 0xE6, 0xE7, 0xEA
IDENTIFY_DEVICE, SET_FEATURES, SECURITY_FREEZE_LOCK, READ_NATIVE_MAX = 0xEC, 0xEF, 0xF5, 0xF8
