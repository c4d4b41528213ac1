"""Where bytes live: files, memory, the far end of an NBD connection.

Each store is a :class:`vdisk.block.BlockDevice`.
"""
