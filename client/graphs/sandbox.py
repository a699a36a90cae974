"""A process that can only compute: it can open no file or socket and start no process.

There are two walls. Resource limits apply on every system: memory, processor time, no new file
descriptors, no bytes written to files, no new processes, no core dumps. On Linux (x86-64 and
aarch64) a seccomp filter (``seccomp(2)``, filter mode) allows the few system calls that arithmetic
and answering through pipes need, and denies all others with EPERM, in all threads. On other systems
the limits stand alone, and `confine` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys

__all__ = ["confine", "die_with_parent"]

# The system calls that numpy, onnxruntime and the interpreter need once everything is loaded, with
# their numbers on x86-64 and on aarch64 (Linux, arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h). None of them can open, connect to, start or kill anything.
_CALLS: dict[str, tuple[int, int]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "set_robust_list": (273, 99),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "rseq": (334, 293),
}
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""By name: the column of `_CALLS`, AUDIT_ARCH, and the number of seccomp(2) itself."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: ld [k]; jeq k, then, else; ret k
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_SIGKILL = 9


def confine(*, memory: int, seconds: int) -> str:
    """Confine this process to computing and to answering through pipes that are already open.

    Everything that it will need must have been imported. File descriptors above the standard three
    are closed.

    Args:
        memory: bytes of address space that it may allocate from now on.
        seconds: processor time that it may use from now on.

    Returns:
        ``"seccomp"`` if the filter is in force, ``"limits"`` if there are only resource limits.
    """
    os.closerange(3, 1 << 16)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": spent + seconds,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NPROC": 0,
    }
    mapped = _mapped()
    if mapped is not None:
        limits["RLIMIT_AS"] = mapped + memory
    limits["RLIMIT_NOFILE"] = 0
    for name, most in limits.items():
        number = getattr(resource, name, None)
        if number is not None:
            with contextlib.suppress(OSError, ValueError):  # a limit that this system lacks
                resource.setrlimit(number, (most, most))
    return "seccomp" if _filter() else "limits"


def die_with_parent() -> None:
    """On Linux, have this process killed when its parent ends."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before prctl took effect
            os._exit(1)


def _mapped() -> int | None:
    """Bytes of address space that this process has mapped; None if the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _filter() -> bool:
    """Install the seccomp filter in every thread; returns whether it is in force."""
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or struct.calcsize("P") != 8:
        return False
    column, architecture, seccomp = machine
    code = _program(sorted(numbers[column] for numbers in _CALLS.values()), architecture)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    # With no_new_privs set, the kernel accepts a filter from an unprivileged process (prctl(2)).
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    done = libc.syscall(
        ctypes.c_long(seccomp),
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(program),
    )
    return bool(done == 0)


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _program(allowed: list[int], architecture: int) -> bytes:
    """The filter: kill on calls of another architecture, allow what is listed, deny the rest.

    ``seccomp_data`` begins with the call's number (4 bytes) and the architecture (4 bytes). Numbers
    of the x32 ABI have bit 30 set, so they are never listed.
    """
    lines = [
        (_LOAD, 0, 0, 4),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    for at, number in enumerate(allowed):
        lines.append((_JUMP_IF_EQUAL, len(allowed) - at, 0, number))
    lines += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
