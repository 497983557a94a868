"""What a worker process runs: jobs from a connection until the driver closes it or dies. Torch-free itself."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import sys
import threading
from multiprocessing.connection import Connection

from autopeft.study.executors.base import Failed, Started
from autopeft.study.executors.perform import failure_of, perform

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(jobs: int, lifeline: int, driver: int, evaluate: str, memory_limit: int) -> None:
    """Serves jobs; returns when the connection is closed.

    Args:
        jobs: File descriptor of the connection: jobs come in, events go out.
        lifeline: File descriptor that reaches its end when the driver is gone.
        driver: Process id of the driver.
        evaluate: The function to call, as "package.module:function".
        memory_limit: Largest size of the process's data in bytes, 0 for none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which decides what becomes of the jobs
    faulthandler.enable()
    _die_with(driver, lifeline)
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    connection = Connection(jobs)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(Started(job.number))
        ended = perform(evaluate, job)
        try:
            connection.send(ended)
        except OSError:
            return
        except Exception as error:  # what evaluate returned cannot travel
            connection.send(Failed(job.number, failure_of(error)))


def _die_with(driver: int, lifeline: int) -> None:
    """Makes this process end when the driver does, however it does."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # it died before the line above
        os._exit(1)

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
