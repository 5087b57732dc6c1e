"""Several processes that train one model: how they start, agree, and notice a death."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from gdregs.vae.errors import UserError

T = TypeVar("T")


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: float = 30.0,
) -> None:
    """Join the other processes of this job, if it has any; before anything is computed.

    Args:
        coordinator: Address and port of process 0, such as `10.0.0.1:1234`. Without it, the tasks
            of a Slurm step find each other.
        num_processes: How many processes there are.
        process_id: Which of them this is, from 0.
        patience: Seconds of silence after which a process counts as dead.

    Raises:
        UserError: If only some of the three are given, they do not make sense, or the processes do
            not find each other.
    """
    given = (coordinator, num_processes, process_id)
    if all(value is None for value in given):
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
            return
    elif coordinator is None or num_processes is None or process_id is None:
        raise UserError("--coordinator, --num-processes and --process-id go together.")
    elif not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id must be between 0 and {num_processes - 1}; got {process_id}."
        )
    try:
        jax.distributed.initialize(*given)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes did not find each other ({reason}).") from None
    Watch.current = Watch(patience)


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T], like: Callable[[], T]) -> T:
    """What process 0 makes, on all processes; the others make something of the same shapes."""
    if jax.process_count() == 1:
        return make()
    return multihost_utils.broadcast_one_to_all(make() if is_first() else like())


class Watch:
    """A thread that says it is alive, and ends this process when another has not said so.

    A collective operation waits for a dead process, on some backends forever. What a run has saved
    is whole, so that ending is all that there is to do.
    """

    current: "Watch | None" = None

    def __init__(self, patience: float):
        from jax._src import distributed  # the client has no public name

        self.client: Any = distributed.global_state.client
        self.address = str(distributed.global_state.coordinator_address)
        self.patience = patience
        self.rank, self.count = jax.process_index(), jax.process_count()
        self.client.key_value_set(
            f"gdregs/name/{self.rank}", f"{socket.gethostname()}, pid {os.getpid()}"
        )
        self.names = [
            self.client.blocking_key_value_get(f"gdregs/name/{rank}", 300_000)
            for rank in range(self.count)
        ]
        self.stopped = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        heard = {rank: ("", time.monotonic()) for rank in range(self.count)}
        beat = 0
        while not self.stopped.wait(self.patience / 10):
            beat += 1
            try:
                key = f"gdregs/beat/{self.rank}"
                self.client.key_value_set(key, str(beat), allow_overwrite=True)
                beats = dict(self.client.key_value_dir_get("gdregs/beat/"))
            except jax.errors.JaxRuntimeError:
                if not self.stopped.is_set():
                    self.end([0])
                return
            now = time.monotonic()
            for rank, (before, _) in heard.items():
                latest = beats.get(f"gdregs/beat/{rank}", "")
                if latest != before:
                    heard[rank] = latest, now
            silent = [rank for rank, (_, when) in heard.items() if now - when > self.patience]
            if silent and not self.stopped.is_set():
                self.end(silent)

    def end(self, ranks: list[int]) -> None:
        """Name the dead processes, in one line, and end this one."""
        names = ", ".join(f"process {rank} ({self.names[rank]})" for rank in ranks)
        print(
            f"\ngdregs: {names} has died; this job stops. What was saved is whole: the same command"
            f" continues from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    def after_a_failure(self) -> None:
        """Wait until it is known which process has died."""
        host, port = self.address.rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), timeout=self.patience).close()
        except OSError:
            self.end([0])
        time.sleep(2 * self.patience)

    def stop(self) -> None:
        """All processes have reached this point, and may end in any order from here on."""
        self.client.wait_at_barrier("gdregs/end", 300_000)
        self.stopped.set()


@contextmanager
def noticing_deaths() -> Iterator[None]:
    """A stretch of work that all processes do together."""
    watch = Watch.current
    try:
        yield
    except jax.errors.JaxRuntimeError:
        if watch is not None:
            watch.after_a_failure()
        raise
    if watch is not None:
        watch.stop()
        Watch.current = None
