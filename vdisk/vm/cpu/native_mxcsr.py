"""MXCSR while native code runs: the guest's, with all exceptions masked (LLVM IR).

``guest_mxcsr`` and ``own_mxcsr`` stand around generated code, ``outside`` and ``inside`` around
what it calls back: the host's MXCSR is kept in ``host_mxcsr``, which is 0 outside.  Exception flags
gather in the host's register; ``read_mxcsr`` and ``write_mxcsr`` are STMXCSR's and LDMXCSR's.

Where the guest unmasks an exception, each instruction stands between ``simd_begin``, which puts the
flags aside, and ``simd_end``, which raises #XM for what that instruction alone found (SDM volume 1,
section 11.5).  A tiny result is an underflow then even if it is exact: flushing to zero tells.
Which flags come with an overflow or underflow, :func:`vdisk.vm.cpu.python_sse.out_of_range` works
out.
"""

from __future__ import annotations

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.routines import PRESERVE
from vdisk.vm.cpu.state import FIELDS

MXCSR, HOST = FIELDS["mxcsr"].offset, FIELDS["host_mxcsr"].offset
UNMASKED, FLAGS = FIELDS["simd_unmasked"].offset, FIELDS["simd_flags"].offset
VECTOR, ERROR = FIELDS["fault_vector"].offset, FIELDS["fault_error"].offset
FTZ, OE, UE = 1 << 15, 1 << 3, 1 << 4
PENDING, CR4 = FIELDS["pending"].offset, FIELDS["cr4"].offset

MXCSR_ROUTINES = f"""
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define {PRESERVE} void @simd_begin(ptr %st) {{
  %m = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %m)
  %old = load i32, ptr %m
  %f = and i32 %old, 63
  %fp = getelementptr i8, ptr %st, i64 {FLAGS}
  store i32 %f, ptr %fp
  %clear = and i32 %old, -64
  %up = getelementptr i8, ptr %st, i64 {UNMASKED}
  %u = load i32, ptr %up
  %ue = and i32 %u, {UE}
  %ftz = shl i32 %ue, 11
  %new = or i32 %clear, %ftz
  store i32 %new, ptr %m
  call void @llvm.x86.sse.ldmxcsr(ptr %m)
  ret void
}}
define {PRESERVE} void @simd_end(ptr %st) {{
  %m = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %m)
  %now = load i32, ptr %m
  %fp = getelementptr i8, ptr %st, i64 {FLAGS}
  %old = load i32, ptr %fp
  %up = getelementptr i8, ptr %st, i64 {UNMASKED}
  %u = load i32, ptr %up
  %found = and i32 %now, 63
  %early = and i32 %found, 7
  %stop = and i32 %early, %u
  %stopped = icmp ne i32 %stop, 0
  %new = select i1 %stopped, i32 %early, i32 %found
  %gp = getelementptr i8, ptr %st, i64 {MXCSR}
  %g = load i32, ptr %gp
  %rest = and i32 %now, {~FTZ & ~63}
  %gftz = and i32 %g, {FTZ}
  %control = or i32 %rest, %gftz
  %raised = and i32 %new, %u
  %range = and i32 %raised, {OE | UE}
  %beyond = icmp ne i32 %range, 0
  %known_flags = select i1 %beyond, i32 0, i32 %new
  %told = or i32 %control, %known_flags
  %both = or i32 %told, %old
  store i32 %both, ptr %m
  call void @llvm.x86.sse.ldmxcsr(ptr %m)
  %hit = icmp ne i32 %raised, 0
  br i1 %hit, label %fault, label %done
fault:
  %cp = getelementptr i8, ptr %st, i64 {CR4}
  %c = load i64, ptr %cp
  %x = and i64 %c, 1024
  %known = icmp ne i64 %x, 0
  %usual = select i1 %known, i32 {faults.XM}, i32 {faults.UD}
  %v = select i1 %beyond, i32 {faults.SIMD_RANGE}, i32 %usual
  %vp = getelementptr i8, ptr %st, i64 {VECTOR}
  store i32 %v, ptr %vp
  %ep = getelementptr i8, ptr %st, i64 {ERROR}
  store i32 0, ptr %ep
  %pp = getelementptr i8, ptr %st, i64 {PENDING}
  store i32 1, ptr %pp
  br label %done
done:
  ret void
}}
define {PRESERVE} i32 @read_mxcsr(ptr %st) {{
  %m = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %m)
  %now = load i32, ptr %m
  %f = and i32 %now, 63
  %gp = getelementptr i8, ptr %st, i64 {MXCSR}
  %g = load i32, ptr %gp
  %all = or i32 %g, %f
  ret i32 %all
}}
define internal {PRESERVE} void @take_mxcsr(ptr %st, i32 %value) {{
  %masks = lshr i32 %value, 7
  %open = xor i32 %masks, 63
  %u = and i32 %open, 63
  %up = getelementptr i8, ptr %st, i64 {UNMASKED}
  store i32 %u, ptr %up
  %m = alloca i32
  %masked = or i32 %value, 8064
  store i32 %masked, ptr %m
  call void @llvm.x86.sse.ldmxcsr(ptr %m)
  ret void
}}
define {PRESERVE} void @write_mxcsr(ptr %st, i32 %value) {{
  %gp = getelementptr i8, ptr %st, i64 {MXCSR}
  store i32 %value, ptr %gp
  call {PRESERVE} void @take_mxcsr(ptr %st, i32 %value)
  ret void
}}
define {PRESERVE} void @guest_mxcsr(ptr %st) {{
  %hp = getelementptr i8, ptr %st, i64 {HOST}
  call void @llvm.x86.sse.stmxcsr(ptr %hp)
  %gp = getelementptr i8, ptr %st, i64 {MXCSR}
  %g = load i32, ptr %gp
  call {PRESERVE} void @take_mxcsr(ptr %st, i32 %g)
  ret void
}}
define {PRESERVE} void @own_mxcsr(ptr %st) {{
  call {PRESERVE} void @x87_leave(ptr %st)
  %m = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %m)
  %now = load i32, ptr %m
  %f = and i32 %now, 63
  %gp = getelementptr i8, ptr %st, i64 {MXCSR}
  %g = load i32, ptr %gp
  %new = or i32 %g, %f
  store i32 %new, ptr %gp
  %hp = getelementptr i8, ptr %st, i64 {HOST}
  call void @llvm.x86.sse.ldmxcsr(ptr %hp)
  store i32 0, ptr %hp
  ret void
}}
define {PRESERVE} i1 @outside(ptr %st) {{
  %hp = getelementptr i8, ptr %st, i64 {HOST}
  %h = load i32, ptr %hp
  %in = icmp ne i32 %h, 0
  br i1 %in, label %leave, label %done
leave:
  call {PRESERVE} void @own_mxcsr(ptr %st)
  br label %done
done:
  ret i1 %in
}}
define {PRESERVE} void @inside(ptr %st, i1 %in) {{
  br i1 %in, label %enter, label %done
enter:
  call {PRESERVE} void @guest_mxcsr(ptr %st)
  br label %done
done:
  ret void
}}
"""
