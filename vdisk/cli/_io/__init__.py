"""The commands of ``vdisk io``.

``session`` holds the open image; ``reading``, ``writing`` and ``upkeep`` have the commands, and
``table`` lists them; ``arguments`` reads their words and ``report`` writes their results, to the
letter as qemu-io 7.2 does, because scripts compare that output.
"""
