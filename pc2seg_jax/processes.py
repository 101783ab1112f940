"""Several processes as one run: they find one another, agree, fail and stop together.

The lead is process 0: it alone reads and writes the run's folder, and tells the others what they need of it.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pc2seg_jax.errors import UserError
from pc2seg_jax.types import Tree

MISTAKE = 2  # exit status: the same command would fail again
RESUME = 75  # exit status (EX_TEMPFAIL of sysexits.h): start the same command again, it continues
_TEXT = 4096  # bytes of a text that processes exchange


class Resume(Exception):
    """The run has ended early, in good order or because a peer was lost: the same command continues it."""


class Agreed(UserError):
    """A mistake of which all processes know: each ends by itself."""


def initialize(
    *, coordinator: str | None = None, num_processes: int = 0, process_id: int | None = None, peer_timeout: float = 300
) -> None:
    """Makes this process one of several, where there are several; before any other use of JAX.

    With `coordinator` the three arguments say which. Without, JAX looks for a TPU pod, Slurm or Open MPI, and
    `num_processes` is what must be found; where it finds none, or 1 is asked for, the process is on its own.

    Args:
      coordinator: host:port of process 0. num_processes: 0: any. process_id: 0..num_processes - 1.
      peer_timeout: seconds; see `Watch`. JAX's own heartbeats end the process after twice that time, which matters
        where a peer is lost before the first step.

    Raises:
      UserError: an argument is missing, the others did not come, or there are not as many as asked for.
    """
    arguments = {}
    if coordinator is not None or process_id is not None:
        if coordinator is None or process_id is None or not num_processes:
            raise UserError(
                "--coordinator=HOST:PORT, --num_processes=N and --process_id=I belong together: give all three, or "
                "neither --coordinator nor --process_id where the cluster tells"
            )
        if ":" not in coordinator or not coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator={coordinator} is not of the form HOST:PORT")
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id is {process_id}, expected 0 to {num_processes - 1} (--num_processes - 1)")
        arguments = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    elif num_processes == 1:
        return
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=int(2 * peer_timeout))
    except ValueError as error:
        if arguments or "coordinator_address" not in str(error):
            raise UserError(f"the processes cannot be joined: {error}") from error
    except RuntimeError as error:  # DEADLINE_EXCEEDED and the like
        if not arguments and "before any JAX calls" in str(error):  # a program that has used JAX is on its own
            return
        raise UserError(
            f"the processes did not find one another ({str(error).splitlines()[0]}): start the same command on every "
            "host, and check --coordinator and --num_processes"
        ) from error
    if num_processes and jax.process_count() != num_processes:
        raise UserError(
            f"--num_processes is {num_processes}, but {jax.process_count()} found one another: start the command "
            "once per host (per GPU under Slurm), or correct the number"
        )


def is_lead() -> bool:
    return jax.process_index() == 0


def _all_texts(text: str) -> list[str]:
    """The texts of all processes, by process. Long ones are cut."""
    data = text.encode()[:_TEXT].ljust(_TEXT, b"\0")
    gathered = np.asarray(multihost_utils.process_allgather(np.frombuffer(data, np.uint8)))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in gathered.reshape(-1, _TEXT)]


def together(function: Callable[[], Any]) -> Any:
    """function() of every process; a `UserError` of one is raised in all, so that none waits for those that ended.

    function must not wait for other processes: one that fails alone would leave them waiting.

    Raises:
      Agreed: with the sentence of the first process that failed.
    """
    value, text = None, ""
    try:
        value = function()
    except UserError as error:
        if jax.process_count() == 1:
            raise
        text = str(error)
    if jax.process_count() > 1:
        for process, said in enumerate(_all_texts(text)):
            if said:
                raise Agreed(said if process == 0 else f"process {process}: {said}")
    return value


def on_lead(function: Callable[[], Any]) -> Any:
    """function() of the lead, which returns what JSON can hold, in all processes; and so its `UserError`."""
    if jax.process_count() == 1:
        return function()
    text = together(lambda: json.dumps(function()) if is_lead() else "")
    return json.loads(_all_texts(text)[0])


def check_same(text: str) -> None:
    """Raises a `UserError` in every process where not all were started with the same `text`."""
    if jax.process_count() == 1:
        return
    sums = np.asarray(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))).ravel()
    different = [str(process) for process in range(len(sums)) if sums[process] != sums[0]]
    if different:
        raise Agreed(
            f"process {', '.join(different)} has another configuration or other data than process 0: start all with "
            "the same flags, on copies of the same data"
        )


def broadcast(tree: Tree, like: Tree) -> Tree:
    """The lead's numpy arrays in all processes. like: shapes and types, e.g. `jax.ShapeDtypeStruct`s; others' `tree` is
    not looked at."""
    if jax.process_count() == 1:
        return tree
    mine = tree if is_lead() else jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(mine))


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """`asked(step)`: whether SIGTERM, in a process of its own Ctrl-C too, has asked the run to end after this step.

    Called after every step, it gives all processes the same answer at the same step, although the signal may have come
    to one alone. A second Ctrl-C ends the process at once.
    """
    if jax.process_count() > 1:  # JAX listens for SIGTERM since `initialize`
        yield multihost_utils.reached_preemption_sync_point
        return
    received = threading.Event()

    def receive(number: int, frame: Any) -> None:
        received.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: received.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Ends this process when nothing has been finished for too long: a peer may be gone, and waiting for it has no end.

    From the first `beat` on, `seconds` may pass between two. The process then says so and exits with `RESUME`; it
    cannot be ended otherwise, as it hangs outside of Python. A process on its own is never ended. Use as a context
    manager.
    """

    def __init__(self, seconds: float, workdir: Any):
        self._seconds, self._workdir = seconds, workdir
        self._last: float | None = None
        self._done = threading.Event()

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            threading.Thread(target=self._run, daemon=True, name="watch").start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._done.set()

    def beat(self) -> None:
        self._last = time.monotonic()

    def watched(self, items: Iterable) -> Iterator:
        """The items, with a beat for each."""
        for item in items:
            self.beat()
            yield item

    def _run(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if self._last is not None and time.monotonic() - self._last > self._seconds:
                leave(f"no step was finished for {self._seconds:g} s (--peer_timeout)", self._workdir)


def leave(reason: str, workdir: Any) -> None:
    """Ends this process with `RESUME`, without the exit handlers, which would wait for peers that are gone."""
    print(
        f"error: {reason}: a peer of process {jax.process_index()} of {jax.process_count()} is lost or stuck, see the "
        f"logs of the others. Start the same command again on all hosts: {workdir} continues after its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(RESUME)


@contextlib.contextmanager
def lost_peers(workdir: Any) -> Iterator[None]:
    """A failed exchange between processes ends this one as `leave` does.

    And a mistake that this process alone has found, such as a damaged image on its disk, with exit status 2, at once:
    an orderly end would wait for the others, which wait for this one.
    """
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1 or isinstance(error, Agreed):
            raise
        print(f"error: process {jax.process_index()}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(MISTAKE)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        leave(f"an exchange with the other processes failed ({str(error).splitlines()[0][:200]})", workdir)
