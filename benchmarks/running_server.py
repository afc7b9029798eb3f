"""A ``fluxvit serve`` that runs beside a benchmark: its answers, its memory, and what it leaves behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


class Server:
    """A running ``fluxvit serve``."""

    def __init__(self, process: subprocess.Popen, port: int, scratch: Path) -> None:
        self.process, self.port, self.scratch = process, port, scratch

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read()

    @property
    def memory(self) -> dict[int, float]:
        """Megabytes of the server and of the processes under it, by their numbers."""
        server, found = psutil.Process(self.process.pid), {}
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # It ended since the list was made.
                found[process.pid] = process.memory_info().rss / 2**20
        return found

    @property
    def leftovers(self) -> tuple[int, int]:
        """Open files of the server, and the files in its folder for temporary ones."""
        files = [path for path in self.scratch.rglob("*") if path.is_file()]
        return psutil.Process(self.process.pid).num_fds(), len(files)


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(checkpoint: str, *options: str) -> Iterator[Server]:
    """A server with a checkpoint that is ready for requests. It is killed if it still runs at the end."""
    port = free_port()
    command = [sys.executable, "-m", "fluxvit", "serve", checkpoint, "--port", str(port), *options]
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(command, env=os.environ | {"TMPDIR": scratch})
        try:
            server = Server(process, port, Path(scratch))
            for _ in range(600):
                try:
                    server.get("/ready")
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit(f"the server ended with code {process.returncode}") from None
                    time.sleep(0.1)
            yield server
        finally:
            process.kill()
            process.wait()
