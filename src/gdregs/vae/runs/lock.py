"""One process at a time in a run folder."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from gdregs.vae.errors import UserError
from gdregs.vae.files import write_json

LOCK, HOLDER = ".lock", ".lock-holder.json"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder's lock; the operating system frees it however this process ends.

    Raises:
        UserError: If another process holds it, with its name.
    """
    import filelock

    try:
        lock = filelock.FileLock(folder / LOCK, timeout=0).acquire()
    except filelock.Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(folder)}; wait for it, or choose another folder."
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}).") from None
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        write_json(folder / HOLDER, holder)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
