"""What compiled code depends on beside this source: LLVM, and the host's processor.

LLVM could tell both; but loading it takes a tenth of a second, and a run that finds all its code in
the cache needs it for nothing else.
"""

from __future__ import annotations

import itertools
import os

import llvmlite

CPUINFO = "/proc/cpuinfo"
TELLING = ("vendor_id", "cpu family", "model", "stepping", "flags")
"""Lines of :data:`CPUINFO` that say for which processor code is compiled (LLVM asks CPUID)."""


def llvm() -> str:
    """Which LLVM it is: a library may be exchanged under the same version of llvmlite."""
    found = []
    for each in os.scandir(os.path.join(os.path.dirname(llvmlite.__file__), "binding")):
        if "llvmlite" in each.name:
            found.append((each.name, each.stat().st_size, each.stat().st_mtime_ns))
    return f"{llvmlite.__version__} {sorted(found)}"


def processor(cpuinfo: str = CPUINFO) -> str:
    """Which processor it is, and what of it may be used."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            first = list(itertools.takewhile(str.strip, file))
    except OSError:
        first = []
    found = [line for line in first if line.partition(":")[0].strip() in TELLING]
    return "".join(found) if len(found) == len(TELLING) else _processor_by_llvm()


def _processor_by_llvm() -> str:
    from llvmlite import binding

    name, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    return f"{name} {features}"
