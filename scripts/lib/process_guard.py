"""Kill a child process when this process ends, in whatever way."""

from __future__ import annotations

import subprocess

# Waits until its standard input is closed: the kernel does that even if this process is killed.
SCRIPT = 'read group && read rest; kill -s KILL -- "-$group" 2>/dev/null; rm -rf -- "$@"'


class ProcessGuard:
    """A shell that outlives this process, to kill a process group and remove directories.

    Start it first, then the child in a session of its own (`start_new_session=True`), then call
    `watch`. `close` ends the guard and leaves the child alone.
    """

    def __init__(self, *directories: str) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", SCRIPT, "sh", *directories],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals for this process's group must not reach the guard
        )

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the group of `process`, children included, when this process ends."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{process.pid}\n".encode())
        self._shell.stdin.flush()

    def close(self) -> None:
        """End the guard without killing anything."""
        assert self._shell.stdin is not None
        self._shell.kill()
        self._shell.stdin.close()
        self._shell.wait()
