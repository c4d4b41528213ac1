"""The process in which the host's processor executes cases: ``python -m … FD SIZE``.

All of it happens inside one signal handler, native code made by LLVM.  ``raise(SIGUSR1)`` enters
it; it puts the first case's state into the context that the kernel is going to restore, and
returns into the case.  The exception that ends a case (the privileged HLT at its end, or a fault)
is the next signal: the handler keeps the context as the outcome, and goes on with the next case.
After the last it restores the context of the raise().  A case costs two context copies and one
signal, 2-3 µs, whether it faults or not.

Records of ``STRIDE`` bytes lie in the shared file FD, input and outcome in one place::

    0    gregs     23 x 8: r8-r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags cs/gs/fs/ss
                   error trapno oldmask cr2, as in the kernel's struct sigcontext_64
    184  signal    outcome: its number
    192  code      64 bytes, HLT behind the code
    256  fxsave    416 bytes: control to XMM15, as FXSAVE lays it out
    672  memory    the window
    5280 linear    where the code goes
    5288 room      how many bytes of the code there are pages for, at most 64

16-bit code and data segments are in the process's LDT, 32-bit ones are Linux's own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys

from tests.tools.cpu_state import (
    ARENA,
    ARENA_SIZE,
    CODE,
    CODE_SIZE,
    DATA,
    DATA_SIZE,
    HLT,
    PAGE,
    READ_ONLY,
    WINDOW,
    WINDOW_SIZE,
)

LINEAR = 672 + WINDOW_SIZE
ROOM = LINEAR + 8
STRIDE = LINEAR + 32
CODE16, DATA16 = 0x07, 0x0F  # LDT entries 0 and 1, RPL 3
CODE32, DATA32 = 0x23, 0x2B  # of Linux, in every process
CODE64 = 0x33
SELECTORS = {16: (CODE16, DATA16), 32: (CODE32, DATA32), 64: (CODE64, DATA32)}

SIGNALS = (signal.SIGUSR1, signal.SIGPROF, signal.SIGSEGV, signal.SIGILL)
FAULTS = (signal.SIGFPE, signal.SIGTRAP, signal.SIGBUS)
TICK = 0.05
"""Seconds of processor time; a case that lives through a whole tick is taken to loop."""

MAP_FIXED_NOREPLACE = 0x10_0000
SYS_MODIFY_LDT = 154
ALTERNATE_STACK_SIZE = 1 << 16

HANDLER = f"""
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

@index = global i64 0
@count = global i64 0
@records = global i64 0
@ticked = global i64 -1
@saved_gregs = global [184 x i8] zeroinitializer
@saved_fx = global [416 x i8] zeroinitializer
@saved_components = global i64 0

define void @handler(i32 %signal, ptr %info, ptr %context) noredzone {{
  call void asm sideeffect "pushq $$2; popfq", "~{{flags}}"() ; NT and ID of the last case
  %gregs = getelementptr i8, ptr %context, i64 40
  %fx_at = getelementptr i8, ptr %context, i64 224
  %fx = load ptr, ptr %fx_at
  %components_at = getelementptr i8, ptr %fx, i64 512
  %components = load i64, ptr %components_at
  %count = load i64, ptr @count
  %records = load i64, ptr @records
  switch i32 %signal, label %outcome [ i32 {int(signal.SIGUSR1)}, label %begin
                                       i32 {int(signal.SIGPROF)}, label %alarm ]
begin:
  call void @llvm.memcpy.p0.p0.i64(ptr @saved_gregs, ptr %gregs, i64 184, i1 0)
  call void @llvm.memcpy.p0.p0.i64(ptr @saved_fx, ptr %fx, i64 416, i1 0)
  store i64 %components, ptr @saved_components
  store i64 0, ptr @index
  br label %load
alarm:
  %now = load i64, ptr @index
  %then = load i64, ptr @ticked
  store i64 %now, ptr @ticked
  %looping = icmp eq i64 %now, %then
  %running = icmp ult i64 %now, %count
  %timed_out = and i1 %looping, %running
  br i1 %timed_out, label %outcome, label %return
outcome:
  %ended = load i64, ptr @index
  %ended_offset = mul i64 %ended, {STRIDE}
  %ended_address = add i64 %records, %ended_offset
  %old = inttoptr i64 %ended_address to ptr
  call void @llvm.memcpy.p0.p0.i64(ptr %old, ptr %gregs, i64 184, i1 0)
  %old_signal = getelementptr i8, ptr %old, i64 184
  store i32 %signal, ptr %old_signal
  %old_fx = getelementptr i8, ptr %old, i64 256
  call void @llvm.memcpy.p0.p0.i64(ptr %old_fx, ptr %fx, i64 416, i1 0)
  %old_memory = getelementptr i8, ptr %old, i64 672
  %window = inttoptr i64 {ARENA + WINDOW} to ptr
  call void @llvm.memcpy.p0.p0.i64(ptr %old_memory, ptr %window, i64 {WINDOW_SIZE}, i1 0)
  %old_linear = getelementptr i8, ptr %old, i64 {LINEAR}
  %old_code = load ptr, ptr %old_linear
  %old_room_at = getelementptr i8, ptr %old, i64 {ROOM}
  %old_room = load i64, ptr %old_room_at
  call void @llvm.memset.p0.i64(ptr %old_code, i8 {HLT}, i64 %old_room, i1 0)
  %following = add i64 %ended, 1
  store i64 %following, ptr @index
  br label %load
load:
  %next = phi i64 [ 0, %begin ], [ %following, %outcome ]
  %done = icmp eq i64 %next, %count
  br i1 %done, label %finish, label %enter
enter:
  %next_offset = mul i64 %next, {STRIDE}
  %next_address = add i64 %records, %next_offset
  %new = inttoptr i64 %next_address to ptr
  call void @llvm.memcpy.p0.p0.i64(ptr %gregs, ptr %new, i64 184, i1 0)
  %new_fx = getelementptr i8, ptr %new, i64 256
  call void @llvm.memcpy.p0.p0.i64(ptr %fx, ptr %new_fx, i64 416, i1 0)
  %with_sse = or i64 %components, 3
  store i64 %with_sse, ptr %components_at
  %new_memory = getelementptr i8, ptr %new, i64 672
  %target = inttoptr i64 {ARENA + WINDOW} to ptr
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %new_memory, i64 {WINDOW_SIZE}, i1 0)
  %new_linear = getelementptr i8, ptr %new, i64 {LINEAR}
  %code_target = load ptr, ptr %new_linear
  %new_room_at = getelementptr i8, ptr %new, i64 {ROOM}
  %new_room = load i64, ptr %new_room_at
  %new_code = getelementptr i8, ptr %new, i64 192
  call void @llvm.memcpy.p0.p0.i64(ptr %code_target, ptr %new_code, i64 %new_room, i1 0)
  br label %return
finish:
  call void @llvm.memcpy.p0.p0.i64(ptr %gregs, ptr @saved_gregs, i64 184, i1 0)
  call void @llvm.memcpy.p0.p0.i64(ptr %fx, ptr @saved_fx, i64 416, i1 0)
  %old_components = load i64, ptr @saved_components
  store i64 %old_components, ptr %components_at
  br label %return
return:
  ret void
}}

define void @set_segments(i32 %selector) {{
  call void asm sideeffect "movl $0, %ds; movl $0, %es", "r"(i32 %selector)
  ret void
}}
"""

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class SignalAction(ctypes.Structure):
    """glibc's struct sigaction."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class SignalStack(ctypes.Structure):
    """struct sigaltstack."""

    _fields_ = [("stack", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


class UserDescriptor(ctypes.Structure):
    """struct user_desc, modify_ldt(2)."""

    _fields_ = [(name, ctypes.c_uint) for name in ("entry", "base", "limit", "flags")]


def check(result: int, what: str) -> None:
    """Raise OSError for a C function that gave -1."""
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def map_arena() -> None:
    """Map the pages of the arena, which must all be free."""
    read, write, execute = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    check(libc.mmap(ARENA, ARENA_SIZE, 0, flags, -1, 0), "mmap of the arena")
    for start, size, protection in (
        (CODE, CODE_SIZE, read | write | execute),
        (DATA, DATA_SIZE, read | write),
        (READ_ONLY, PAGE, read),
    ):
        changed = libc.mprotect(ctypes.c_void_p(ARENA + start), ctypes.c_size_t(size), protection)
        check(changed, "mprotect")
    ctypes.memset(ARENA + CODE, HLT, CODE_SIZE)
    ctypes.memset(ARENA + DATA, 0, DATA_SIZE)  # present from now on: error codes tell
    ctypes.string_at(ARENA + READ_ONLY, 1)


def make_segments() -> None:
    """16-bit code and data segments over the arena."""
    data, code, usable = 0 << 1, 2 << 1, 1 << 6
    for selector, kind in ((CODE16, code), (DATA16, data)):
        descriptor = UserDescriptor(selector >> 3, ARENA, ARENA_SIZE - 1, kind | usable)
        size = ctypes.c_ulong(ctypes.sizeof(descriptor))
        check(libc.syscall(SYS_MODIFY_LDT, 1, ctypes.byref(descriptor), size), "modify_ldt")


def install(handler: int) -> ctypes.Array[ctypes.c_char]:
    """Let the handler have the signals, on a stack of its own (which is given back)."""
    memory = ctypes.create_string_buffer(ALTERNATE_STACK_SIZE)
    stack = SignalStack(ctypes.addressof(memory), 0, ALTERNATE_STACK_SIZE)
    check(libc.sigaltstack(ctypes.byref(stack), None), "sigaltstack")
    siginfo, on_stack, no_defer = 4, 0x0800_0000, 0x4000_0000
    action = SignalAction(handler=handler, flags=siginfo | on_stack | no_defer)
    action.mask[0] = 1 << signal.SIGPROF - 1
    for number in SIGNALS + FAULTS:
        check(libc.sigaction(int(number), ctypes.byref(action), None), "sigaction")
    return memory


def serve(descriptor: int, size: int) -> None:
    """Run the batches that standard input names: "mode count" a line; "done" answers."""
    from llvmlite import binding as llvm  # late: its start is all this process costs

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    module = llvm.parse_assembly(HANDLER)
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()

    def variable(name: str) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(engine.get_global_value_address(name))

    shared = mmap.mmap(descriptor, size)
    variable("records").value = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    set_segments = ctypes.CFUNCTYPE(None, ctypes.c_uint)(
        engine.get_function_address("set_segments")
    )
    map_arena()
    make_segments()
    stack = install(engine.get_function_address("handler"))
    print("ready", flush=True)
    for line in sys.stdin:
        mode, count = (int(word) for word in line.split())
        set_segments(SELECTORS[mode][1])
        variable("ticked").value = -1
        variable("count").value = count
        signal.setitimer(signal.ITIMER_PROF, TICK, TICK)
        getattr(libc, "raise")(int(signal.SIGUSR1))
        signal.setitimer(signal.ITIMER_PROF, 0)
        variable("count").value = 0
        print("done", flush=True)
    del stack, set_segments


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
