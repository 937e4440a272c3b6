"""Watching what a process does to files, system call by system call, and making calls fail: as strace does.

Reaches every write, whichever language makes it. Linux on x86-64, by ptrace(2); a process may trace its own
children without any right of its own.
"""

import ctypes
import errno
import os
import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"

_SYSCALL, _GETREGS, _SETREGS, _DETACH, _SEIZE, _INTERRUPT = 24, 12, 13, 17, 0x4206, 0x4207  # requests
_SYSGOOD, _WALL, _SYSCALL_STOP = 1, 0x40000000, signal.SIGTRAP | 0x80
_HERE = -100  # AT_FDCWD

# number: name, and where the paths are: f a descriptor, p a path, d a folder's descriptor before its path
_CALLS = {
    1: ("write", "f"),
    18: ("write", "f"),
    20: ("write", "f"),
    40: ("write", "f"),  # sendfile
    326: ("write", "__f"),  # copy_file_range
    77: ("truncate", "f"),
    285: ("allocate", "f"),
    74: ("fsync", "f"),
    75: ("fsync", "f"),
    82: ("rename", "pp"),
    264: ("rename", "d.d."),
    316: ("rename", "d.d."),
    83: ("mkdir", "p"),
    258: ("mkdir", "d."),
    87: ("unlink", "p"),
    263: ("unlink", "d."),
    84: ("rmdir", "p"),
    2: ("create", "p"),
    257: ("create", "d."),
}
_OPEN_FLAGS = {2: 1, 257: 2}  # which argument holds them; without O_CREAT or O_TRUNC nothing changes
_NAMES = (  # struct user_regs_struct
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss"
    " fs_base gs_base ds es fs gs"
)
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2, its fifth argument


@dataclass(frozen=True)
class Change:
    """A system call that changes files; a rename has two paths, all others one."""

    name: str
    paths: tuple[str, ...]
    exchange: bool = False


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _NAMES.split()]

    def arguments(self) -> list[int]:
        values = (self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9)
        return [ctypes.c_longlong(value).value for value in values]


class ProcessEndedError(Exception):
    """The traced process is gone."""


class Tracer:
    """Follows a thread of a process, by its own id, while it works under a folder."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, str(folder)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.restype = ctypes.c_long
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

    def follow(
        self,
        begin: Callable[[], None],
        until: Callable[[], bool],
        before: Callable[[Change], int | None] = lambda change: None,
        after: Callable[[Change], None] = lambda change: None,
    ) -> None:
        """Stop the process at each change, from `begin`, which is to let it go on, until `until` says so.

        `before` may give an error number: then the call is not made and fails with it. `after` is called when
        it is done, also when it failed by itself, but not where `before` made it fail.
        """
        self._ptrace(_SEIZE, 0, _SYSGOOD)
        self._ptrace(_INTERRUPT)
        self._wait()
        begin()
        change, number, forced = None, 0, None
        inside = False
        while not until():
            self._ptrace(_SYSCALL)
            if self._wait() != _SYSCALL_STOP:
                continue
            inside = not inside
            registers = self._registers()
            if inside:
                if ctypes.c_longlong(registers.rax).value != -errno.ENOSYS:
                    inside = False  # tracing began within a call: this is its end
                    continue
                number = registers.orig_rax
                change = self._change(number, registers.arguments())
                forced = before(change) if change else None
                if forced:
                    registers.orig_rax = 2**64 - 1
                    self._ptrace(_SETREGS, 0, ctypes.addressof(registers))
            elif forced:
                registers.rax = 2**64 - forced
                self._ptrace(_SETREGS, 0, ctypes.addressof(registers))
            elif change:
                after(change)
        self._ptrace(_DETACH)

    def _change(self, number: int, arguments: list[int]) -> Change | None:
        if number not in _CALLS:
            return None
        name, places = _CALLS[number]
        if number in _OPEN_FLAGS and not arguments[_OPEN_FLAGS[number]] & (os.O_CREAT | os.O_TRUNC):
            return None
        paths = []
        for place, kind in enumerate(places):
            if kind == "f":
                paths.append(self._descriptor(arguments[place]))
            elif kind == "p":
                paths.append(self._text(arguments[place]))
            elif kind == "d":
                folder, path = ctypes.c_int(arguments[place]).value, self._text(arguments[place + 1])
                base = f"/proc/{self.pid}/cwd" if folder == _HERE else self._descriptor(folder)
                paths.append(os.path.join(base, path))
        if not any(path.startswith(self.folder) for path in paths):
            return None
        return Change(name, tuple(paths), exchange=number == 316 and bool(arguments[4] & _EXCHANGE))

    def _descriptor(self, number: int) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{number}")
        except OSError:
            return ""

    def _text(self, address: int) -> str:
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return os.fsdecode(memory.read(4096).split(b"\0", 1)[0])

    def _registers(self) -> _Registers:
        registers = _Registers()
        self._ptrace(_GETREGS, 0, ctypes.addressof(registers))
        return registers

    def _wait(self) -> int:
        _, status = os.waitpid(self.pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessEndedError(f"status {status}")
        return os.WSTOPSIG(status)

    def _ptrace(self, request: int, address: int = 0, data: int = 0) -> None:
        if self._libc.ptrace(request, self.pid, address, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace request {request}")
