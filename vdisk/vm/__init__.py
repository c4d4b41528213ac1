"""A compact PC: processor, memory, chips and screen around the library's block devices.

Needs the extra ``vdisk[vm]`` (llvmlite, iced-x86) unless the machine runs on KVM.
"""
