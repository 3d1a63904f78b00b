"""PyTorch programs of strangers, read and asked in a process without rights.

Reading a ``.pt2`` file can run code of its maker: PyTorch unpickles parts of it, and evaluates text
in it. TorchScript has operators that write files. So neither is read here. A child process gives up
its rights first, for good, and the kernel then refuses it what could do harm: opening a file to
write, making, renaming or removing one, starting a program, opening a connection, signals,
debugging. It may read files and compute, and its only way out are the numbers that it answers.

The file is run as a script by its child, and imports nothing of the package there.
"""

import contextlib
import os
import platform
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any

# What the program may ask the kernel for; every other call fails with EPERM. By name, x86-64 and
# ARM (64 bits) number.
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "getcwd": (79, 17), "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132), "statfs": (137, 43), "fstatfs": (138, 44),
    "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "getcpu": (309, 168),
    "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
    # those that ARM does not have
    "stat": (4, None), "lstat": (6, None), "poll": (7, None), "access": (21, None), "readlink": (89, None),
    "getpgrp": (111, None), "arch_prctl": (158, None),
}  # fmt: skip
# Allowed where an argument has none of some bits (first), or all of them (second): number,
# argument, bits.
_WRITING = 0o3 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
_WITHOUT = {
    "openat": ((257, 56), 2, _WRITING),
    "open": ((2, None), 1, _WRITING),
    # to copy a descriptor, and to read or set whether it is inherited
    "fcntl": ((72, 25), 1, ~0x403 & 0xFFFFFFFF),
    "prlimit64": ((302, 261), 2, 0xFFFFFFFF),  # to read a limit, not to set one
}
_WITH = {"clone": ((56, 220), 0, 0x10000)}  # CLONE_THREAD
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NONE, _ALLOW, _EPERM, _ENOSYS = 0, 0x7FFF0000, 0x50001, 0x50026
_CLONE3 = 435  # its flags cannot be looked at; without it the C library uses clone

WAIT = 600.0
"""Seconds that a program may take to load, or to answer."""
_OK, _FAILED = b"\x00", b"\x01"
_SAID = "<4Q"
"""What a program says when it is there: K, and up to three sizes of a row."""
_HEAD = struct.Struct("<cQ")


def supported() -> bool:
    """Whether this system can take a process's rights away: Linux on x86-64 or 64-bit ARM."""
    return sys.platform == "linux" and platform.machine() in _MACHINES and sys.maxsize > 2**32


class ConfinedProgram:
    """A suspect that lives in a process without rights: rows (B, H, W, C) or (B, D) -> scores (B,
    K).

    Args:
      path: ``.pt2`` of ``torch.export.save``; any other name is taken for TorchScript.
      num_classes: K; None: what it answers. shape: of a row, (H, W, C) or (D,); None: what an
        exported program says that it takes. layout: of its images.

    Raises:
      InputError: on a system that cannot confine a process, for a file that holds no program, or
        one that takes too long.
    """

    on_host = True

    def __init__(
        self,
        path: str,
        num_classes: int | None = None,
        shape: tuple[int, ...] | None = None,
        layout: str = "NCHW",
    ):
        from dfke_jax.core.errors import InputError

        if not supported():
            raise InputError(
                f"{path} may hold foreign code, and this system ({sys.platform}, "
                f"{platform.machine()}) has no process without rights to read it in; serve it "
                "elsewhere and give its URL"
            )
        self.path = path
        kept = {
            name: os.environ[name]
            for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
            if name in os.environ
        }
        command = [
            sys.executable,
            "-P",
            "-B",
            os.path.abspath(__file__),
            os.path.abspath(path),
            layout,
        ]
        self._child = subprocess.Popen(
            [*command, *map(str, (num_classes or 0, *(shape or ())))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # it cannot make one
            env=kept | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": "/"},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._in, self._out = self._child.stdin, self._child.stdout
        try:
            self.num_classes, *sizes = struct.unpack(_SAID, self._reply(struct.calcsize(_SAID)))
            self.input_shape = tuple(size for size in sizes if size)
            if (
                not self.input_shape
                or num_classes not in (None, self.num_classes)
                or shape not in (None, self.input_shape)
            ):
                raise InputError(f"{path} does not answer what it was asked")
        except BaseException:
            self.close()
            raise

    def __call__(self, rows: Any) -> Any:
        """Scores (B, K), float64.

        Raises:
          InputError: where the program fails, answers something else, or takes too long.
        """
        import numpy as np

        rows = np.ascontiguousarray(rows, "<f4")
        deadline, message = (
            time.monotonic() + WAIT,
            memoryview(struct.pack("<Q", len(rows)) + rows.tobytes()),
        )
        os.set_blocking(self._in.fileno(), False)
        while message:
            self._await(deadline, writing=True)
            try:
                message = message[os.write(self._in.fileno(), message) :]
            except OSError:
                break  # it has ended; the reply says so
        return np.frombuffer(self._reply(8 * len(rows) * self.num_classes), "<f8").reshape(
            len(rows), self.num_classes
        )

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._in, self._out):
            pipe.close()

    def _reply(self, size: int) -> bytes:
        """What the child says; it is believed in nothing but its length."""
        from dfke_jax.core.errors import InputError

        deadline = time.monotonic() + WAIT
        state, length = _HEAD.unpack(self._read(_HEAD.size, deadline))
        if state == _OK and length == size:
            return self._read(size, deadline)
        text = (
            self._read(min(length, 300), deadline).decode(errors="replace")
            if state == _FAILED
            else "a wrong answer"
        )
        text = "".join(c if c.isprintable() else "?" for c in text)
        raise InputError(
            f"{self.path} holds no program that can be asked, without any rights: {text}"
        )

    def _read(self, size: int, deadline: float) -> bytes:
        from dfke_jax.core.errors import InputError

        found = bytearray()
        while len(found) < size:
            self._await(deadline)
            part = os.read(self._out.fileno(), min(size - len(found), 1 << 20))
            if not part:
                raise InputError(
                    f"{self.path}: its process ended without an answer; the file is damaged or "
                    "hostile"
                )
            found += part
        return bytes(found)

    def _await(self, deadline: float, writing: bool = False) -> None:
        from dfke_jax.core.errors import InputError

        left = max(0.0, deadline - time.monotonic())
        pipes = ([], [self._in]) if writing else ([self._out], [])
        if not any(select.select(*pipes, [], left)[:2]):
            raise InputError(f"{self.path} did not answer within {WAIT:g} seconds")


# ---- in the child


def _confine(largest: int) -> None:
    """Gives up all rights but to read and to compute. There is no way back.

    Args:
      largest: bytes of memory of its own.

    Raises:
      OSError: where the kernel does not do it.
    """
    import ctypes
    import resource

    for name, most in (("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0), ("RLIMIT_DATA", largest)):
        hard = resource.getrlimit(getattr(resource, name))[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(getattr(resource, name), (most, most))
    code = program(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    what = Filter(len(code) // 8, ctypes.addressof(buffer))
    no_new_rights, set_filter = (38, 1, 0, 0, 0), (22, 2, ctypes.byref(what), 0, 0)
    if libc.prctl(*no_new_rights) or libc.prctl(*set_filter):
        raise OSError(ctypes.get_errno(), "the kernel does not confine processes")


def program(machine: str) -> bytes:
    """The filter of system calls, for the kernel's packet filter machine.

    Instructions are (operation, jump if true, jump if false, number) in 8 bytes. The call is at
    offset 0 of what they look at, the machine at 4, and the low half of argument i at 16 + 8i.
    """
    column, arch = _MACHINES[machine]
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, _EPERM), (load, 0, 0, 0)]
    code += [(equal, 0, 1, _CLONE3), (give, 0, 0, _ENOSYS)]
    for numbers in _ALLOWED.values():
        if numbers[column] is not None:
            code += [(equal, 0, 1, numbers[column]), (give, 0, 0, _ALLOW)]
    for table, if_set, if_not in ((_WITHOUT, _EPERM, _ALLOW), (_WITH, _ALLOW, _EPERM)):
        for numbers, argument, mask in table.values():
            if numbers[column] is not None:
                code += [
                    (equal, 0, 4, numbers[column]),
                    (load, 0, 0, 16 + 8 * argument),
                    (bits, 0, 1, mask),
                ]
                code += [(give, 0, 0, if_set), (give, 0, 0, if_not)]
    code.append((give, 0, 0, _EPERM))
    return b"".join(struct.pack("<HBBI", *one) for one in code)


def _serve(path: str, layout: str, classes: int, shape: tuple[int, ...]) -> None:
    """Loads the program and answers rows until standard input ends."""
    _confine((8 << 30) + 8 * os.path.getsize(path))
    out = sys.stdout.buffer

    def say(state: bytes, content: bytes) -> None:
        out.write(_HEAD.pack(state, len(content)) + content)
        out.flush()

    try:
        import tempfile

        # PyTorch asks where one would be, and Python would try whether it can be written
        tempfile.tempdir = "/"
        import numpy as np
        import torch

        torch.set_num_threads(1)
        module, fixed, sizes, precision = loaded(torch, path)
        shape = shape or rows_of(sizes, layout) or ()
        if not shape:
            raise ValueError("it does not say what it takes; declare its shape")
        ask = lambda rows: answers(torch, module, fixed, precision, rows, layout)
        first = ask(np.zeros((2, *shape), np.float32))
        if first.ndim != 2 or classes not in (0, first.shape[1]):
            raise ValueError(f"2 rows are answered with {first.shape}, not (2, {classes or 'K'})")
        say(_OK, struct.pack(_SAID, first.shape[1], *shape, *(0,) * (3 - len(shape))))
        size = int(np.prod(shape))
        while head := sys.stdin.buffer.read(8):
            count = int.from_bytes(head, "little")
            rows = np.frombuffer(sys.stdin.buffer.read(4 * count * size), "<f4")
            say(_OK, np.ascontiguousarray(ask(rows.reshape(count, *shape)), "<f8").tobytes())
    except BaseException as error:  # of many kinds, and not all of them honest
        say(_FAILED, f"{type(error).__name__}: {error}".encode(errors="replace")[:300])


def answers(torch: Any, module: Any, fixed: int, precision: Any, rows: Any, layout: str) -> Any:
    """Scores (B, K) in float64 of rows (B, H, W, C) or (B, D), in batches of the size that a
    program was exported for.

    Args:
      module, fixed, precision: as of `loaded`.
    """
    import numpy as np

    images = rows.ndim == 4 and layout == "NCHW"
    given = torch.from_numpy(
        np.array(rows.transpose(0, 3, 1, 2) if images else rows, order="C")
    ).to(precision)
    count, step = len(given), fixed or max(1, min(256, len(given)))
    parts = []
    for start in range(0, count, step):
        part = given[start : start + step]
        if fixed and len(part) < fixed:  # the size that it was exported for
            part = torch.cat([part, part[-1:].expand(fixed - len(part), *part.shape[1:])])
        with torch.no_grad():
            answer = module(part)
        if not isinstance(answer, torch.Tensor) or answer.ndim != 2 or len(answer) != len(part):
            found = (
                tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
            )
            raise ValueError(f"{len(part)} rows are answered with {found}, not ({len(part)}, K)")
        parts.append(answer.to("cpu", torch.float64).numpy())
    return np.concatenate(parts)[:count]


def loaded(torch: Any, path: str) -> tuple[Any, int, tuple[int, ...] | None, Any]:
    """The program, the batch size that it was exported for (0: any), the sizes of a row, if it says
    them, and its type.
    """
    if not path.endswith(".pt2"):
        module = torch.jit.load(path, "cpu").eval()
        floats = (p.dtype for p in module.parameters() if p.is_floating_point())
        return module, 0, None, next(floats, torch.float32)
    exported = torch.export.load(path)
    (name,) = exported.graph_signature.user_inputs
    value = next(node.meta["val"] for node in exported.graph.nodes if node.name == name)
    sizes = (
        tuple(value.shape[1:]) if all(isinstance(size, int) for size in value.shape[1:]) else None
    )
    size = value.shape[0]
    return exported.module(), size if isinstance(size, int) else 0, sizes, value.dtype


def rows_of(sizes: tuple[int, ...] | None, layout: str) -> tuple[int, ...] | None:
    """The shape of a row, (H, W, C) or (D,), from the sizes that a program takes."""
    if sizes is None or len(sizes) not in (1, 3):
        return None
    return (sizes[1], sizes[2], sizes[0]) if len(sizes) == 3 and layout == "NCHW" else sizes


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), tuple(map(int, sys.argv[4:])))

__all__ = ["WAIT", "ConfinedProgram", "answers", "loaded", "program", "rows_of", "supported"]
