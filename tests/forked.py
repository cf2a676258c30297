"""Starts Python programs as forks of a process that has imported their libraries already.

The tests start the app and its commands hundreds of times, and imports of libraries take most of
the time of a start. A fork is a process of its own, with the program's own modules, a child of the
one that asked for it. ``make faults`` forks none.
"""

import ctypes
import inspect
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARIES = (
    "alembic.autogenerate",
    "alembic.command",
    "alembic.config",
    "fastapi_offline",
    "pydantic_settings",
    "pymongo",
    "redis.asyncio.sentinel",
    "rich.progress",
    "sqlalchemy.dialects.mysql.asyncmy",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlmodel.ext.asyncio.session",
    "typer",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.main",
    "uvicorn.protocols.http.httptools_impl",
)
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux' prctl(2)
# Kept, because Popen warns when it forgets a process that runs.
forking: list[subprocess.Popen[bytes]] = []
one_at_a_time = threading.Lock()
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
# The options of Popen with which a command can be forked.
USUAL: dict[str, Any] = {"executable": None, "shell": False, "preexec_fn": None, "close_fds": True}
USUAL |= {"pass_fds": (), "gid": None, "gids": None, "uid": None, "umask": -1}
USUAL |= {"start_new_session": False, "process_group": -1}


class Popen(subprocess.Popen[Any]):
    """``subprocess.Popen``, which forks if the command is a module or a script for Python."""

    server: socket.socket | None = None  # on which the process that forks takes requests

    def _execute_child(self, *values: Any) -> None:
        names = inspect.signature(subprocess.Popen._execute_child).parameters  # type: ignore[attr-defined]  # not in typeshed
        given = dict(zip(names, (self, *values), strict=True))
        command = [*map(str, given["args"])]
        strict = command[1:3] == ["-W", "error"]
        program = command[3 if strict else 1 :]
        ours = command[0] == sys.executable and re.fullmatch(r"-m|.*\.py", [*program, ""][0])
        usual = all(given[name] == value for name, value in USUAL.items())
        if not (ours and usual) or sys.platform != "linux" or "FAULTS" in os.environ:
            super()._execute_child(*values)  # type: ignore[misc]  # not in typeshed
            return
        request = {
            "strict": strict,
            "program": program,
            "folder": str(given["cwd"] or Path.cwd()),
            "environment": {**(os.environ if given["env"] is None else given["env"])},
            "umask": re.findall(r"Umask:\s*(\d+)", Path("/proc/self/status").read_text())[0],
        }
        fds = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        fds = [standard if fd == -1 else fd for standard, fd in enumerate(fds)]
        prctl = ctypes.CDLL(None).prctl
        try:
            with one_at_a_time:
                server = Popen.server = Popen.server or serve()
                # The program's parent ends at once, and this process takes its place.
                prctl(SUBREAPER, 1, 0, 0, 0)
                socket.send_fds(server, [json.dumps(request).encode()], fds)
                self.pid = int(server.recv(100))
                prctl(SUBREAPER, 0, 0, 0, 0)
        finally:
            self._close_pipe_fds(*map(given.get, PIPES))  # type: ignore[attr-defined]  # not in typeshed
        self._child_created = True


def run(command: Sequence[str], timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run``, by ``Popen``; what the program prints is in the result."""
    with Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def serve() -> socket.socket:
    """Start the process that forks; return the socket on which it takes requests.

    It ends when the socket is closed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, __file__, str(theirs.fileno())]
    with theirs:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "env": env}
        forking.append(subprocess.Popen(command, pass_fds=[theirs.fileno()], **options))
    return ours


def wait_for_request(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request; return it in the fork."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, 2**20, 3)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        parent = os.fork()
        if not parent:
            if pid := os.fork():
                os.write(write, str(pid).encode())
                os._exit(0)
            os.close(read)
            os.close(write)
            control.close()
            return json.loads(message), fds
        os.waitpid(parent, 0)
        os.close(write)
        control.send(os.read(read, 100))
        for fd in (read, *fds):
            os.close(fd)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with warnings.catch_warnings(action="error"):
        for name in LIBRARIES:
            import_module(name)
    request, fds = wait_for_request(control)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, fd in enumerate(fds):
        os.dup2(fd, standard)
        os.close(fd)
    os.umask(int(request["umask"], 8))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    # They stay open for as long as the process lives.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(0, closefd=False),
        os.fdopen(1, "w", 1 if os.isatty(1) else -1, closefd=False),
        os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False),
    )
    if request["strict"]:
        sys.warnoptions[:] = ["error"]
        warnings.simplefilter("error")
    path = os.environ.get("PYTHONPATH", "")
    sys.path[0:1] = path.split(os.pathsep) if path else []
    first, *arguments = request["program"]
    if first == "-m":
        module, *arguments = arguments
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
