"""Accelerators: what runs a guest's instructions (``llvm``, ``kvm``, ``interp``)."""
