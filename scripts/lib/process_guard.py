"""Kill a child process when this process ends, in whatever way."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

# Waits until its standard input is closed: the kernel does that even if this process is killed.
GUARD = 'read group && read rest; kill -s KILL -- "-$group" 2>/dev/null; rm -rf -- "$@"'
# Becomes the child. Its standard input is that of the guard: it announces its process group itself,
# so that there is no moment at which it runs and the guard does not know it.
CHILD = 'echo $$ >&0 && exec "$@" </dev/null'


class ProcessGuard:
    """A shell that outlives this process, to kill a child's group and remove directories.

    `start` starts the child, once. `close` ends the guard and leaves the child alone.
    """

    def __init__(self, *directories: str) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", GUARD, "sh", *directories],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals for this process's group must not reach the guard
        )

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start `command` as a process group of its own, which is killed when this process ends.

        options: of subprocess.Popen. The standard input of the command is empty.
        """
        return subprocess.Popen(
            ["sh", "-c", CHILD, "sh", *command],
            stdin=self._shell.stdin,
            start_new_session=True,
            **options,
        )

    def close(self) -> None:
        """End the guard without killing anything."""
        assert self._shell.stdin is not None
        self._shell.kill()
        self._shell.stdin.close()
        self._shell.wait()
