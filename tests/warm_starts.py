"""Processes of ours that begin with torch imported: a start takes 0.3 s instead of two.

Tests start hundreds, of which many are what is tested: the jobs of a study, the workers of a race.
For each `python -m rnnnas...` that this process starts by `subprocess`, a process that has imported
torch, and none of our modules, forks; so its modules, arguments, environment, folder and streams
are its own, and it is a child of this process as any other. What else than that differs is started
the usual way: another interpreter's options, a terminal, an environment that torch or Python reads
before the first line. Linux only; COLD_STARTS=1 in the environment does without.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

# What is read before a program's first line, or when a library is loaded.
EARLY = (
    "PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS", "ATEN_", "ONEDNN_", "DNNL_",
    "TORCH", "PYTORCH", "CUDA", "NVIDIA", "TRITON", "WORLD_SIZE", "RANK", "LOCAL_", "MASTER_",
    "MALLOC_", "LANG", "LC_", "VIRTUAL_ENV",
)  # fmt: skip
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl
# Ours set the first for their workers, and it is carried over by hand; the second is how long
# threads spin, of which there is one; the third where torch's compiler, once imported, keeps files.
FREE = {"PYTHONPATH", "GOMP_SPINCOUNT", "TORCHINDUCTOR_CACHE_DIR"}
LONGEST = 1 << 20  # bytes of a request


class WarmPopen(subprocess.Popen[Any]):
    """`subprocess.Popen`, which asks for a fork where it may."""

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*args).arguments  # type: ignore[misc]
        request = _request(given)
        if request is None:
            super()._execute_child(*args)  # type: ignore[misc]
            return
        streams = [
            number if number != -1 else own
            for own, number in enumerate((given["p2cread"], given["c2pwrite"], given["errwrite"]))
        ]
        try:
            self.pid = _SERVER.fork(request, streams)
            self._child_created = True
        finally:
            # What Popen itself does at its end: the child's ends of the pipes are the child's.
            self._close_pipe_fds(  # type: ignore[attr-defined]
                *(given[name] for name in (
                    "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"
                ))
            )  # fmt: skip


def _request(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a fork is to be, or None for what is started the usual way."""
    words = given["args"]
    if isinstance(words, str | bytes) or given["shell"] or given["pass_fds"]:
        return None
    words = [os.fsdecode(word) for word in words]
    if words[:2] != [sys.executable, "-m"] or words[2].partition(".")[0] != "rnnnas":
        return None
    plain = {"preexec_fn": None, "close_fds": True, "restore_signals": True, "umask": -1}
    if any(given[name] != value for name, value in plain.items()):
        return None
    if any(given[name] not in (None, -1) for name in ("gid", "gids", "uid", "process_group")):
        return None
    environment = {
        os.fsdecode(k): os.fsdecode(v) for k, v in (given["env"] or os.environ).items()
    }  # fmt: skip
    for name in {*environment, *_SERVER.environment}:
        early = name.startswith(EARLY) and name not in FREE
        if early and environment.get(name) != _SERVER.environment.get(name):
            return None
    streams = (given["p2cread"], given["c2pwrite"], given["errwrite"])
    if any(os.isatty(own if number == -1 else number) for own, number in enumerate(streams)):
        return None
    return {
        "words": words[2:], "environment": environment, "parent": os.getpid(),
        "folder": os.fspath(given["cwd"] or os.getcwd()), "session": given["start_new_session"],
    }  # fmt: skip


class _Server:
    """The process that forks, started at the first request, ended with this process."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, request: Mapping[str, Any], streams: list[int]) -> int:
        """The process number of a new child of this process."""
        with self._lock, _adopting():
            if self._socket is None:
                self._socket = self._begin()
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
            answer = self._socket.recv(64)
        if not answer:
            raise OSError("the process that forks has ended")
        return int(answer)

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        with theirs:
            real = [sys.executable, os.path.abspath(__file__), str(theirs.fileno())]
            self._process = _POPEN(
                real, env=self.environment, pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        return ours


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Whose parent ends becomes this process's child, in the block and not beyond."""
    libc = ctypes.CDLL(None)
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(SUBREAPER, 0, 0, 0, 0)


_POPEN = subprocess.Popen
_SERVER = _Server()


def install() -> None:
    """From here on, `subprocess` starts our modules so. Call it after the environment is set."""
    if sys.platform == "linux" and not os.environ.get("COLD_STARTS"):
        _SERVER.environment = dict(os.environ)
        subprocess.Popen = WarmPopen  # type: ignore[misc]


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for every request; in the child, its request; in the server at last None."""
    while True:
        data, streams, _, _ = socket.recv_fds(channel, LONGEST, 3)
        if not data:
            return None
        inner, outer = os.pipe()
        middle = os.fork()
        if not middle:
            child = os.fork()
            if child:  # the one that asked adopts it once this one has ended
                os.write(outer, str(child).encode())
                os._exit(0)
            for place, stream in enumerate(streams):
                os.dup2(stream, place)
            os.closerange(3, max(streams[-1], outer, channel.fileno()) + 64)
            channel.detach()
            request: dict[str, Any] = json.loads(data)
            return request
        os.waitpid(middle, 0)
        channel.send(os.read(inner, 64))
        for number in (inner, outer, *streams):
            os.close(number)


def _become(request: Mapping[str, Any]) -> None:
    """Make of this fork what an interpreter is before `-m`'s first line."""
    while os.getppid() != request["parent"]:
        pass
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    before = os.environ.get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(request["environment"])
    kept = [path for path in sys.path[1:] if path not in before.split(os.pathsep)]
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request["folder"], *added, *kept]
    sys.argv = ["-m", *request["words"][1:]]
    sys.orig_argv = [sys.executable, "-m", *request["words"]]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(_buffer(1))
    sys.stderr = io.TextIOWrapper(_buffer(2), errors="backslashreplace", line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _buffer(number: int) -> io.BufferedWriter:
    return io.BufferedWriter(io.FileIO(number, "w", closefd=False))


def main() -> None:
    import click  # noqa: F401
    import numpy  # noqa: F401
    import torch  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        _become(request)
        _run(request["words"][0])


def _run(module: str) -> NoReturn:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
