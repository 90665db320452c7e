"""One writer a run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from engine.errors import ConfigurationError
from engine.runs.files import storage, write_all


class Lock:
    """An exclusive lock on a directory, held until :meth:`release` or the death of the process.

    The file ``lock`` names the holder for people; the lock itself is the kernel's (``flock``), so one that a dead process
    left behind does not hold anybody up.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock"
        with storage(self.path):
            self._descriptor = self._acquire()
            try:
                os.ftruncate(self._descriptor, 0)
                write_all(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            except OSError:
                os.close(self._descriptor)
                raise

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    return descriptor
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                message = f"{self.path.parent}: in use by {holder}; wait for it to end or choose another --out"
                raise ConfigurationError(message) from None
            except FileNotFoundError:
                pass  # The holder before us unlinked the file between our open and our lock: lock the next one.
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self) -> None:
        """Remove the lock file and let go; a second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                with storage(self.path):
                    self.path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
