"""The Ray cluster a study runs on: one that is there already, or one on this machine for as long as it is needed.

Whoever can talk to a Ray cluster can run code on it. One that we start listens on 127.0.0.1 only and asks for a token
that exists in the memory and the environment of its own processes; one that others started is asked as they set it up,
with their token. Token authentication is never switched off here. Torch-free; the only importers of ray are this file
and `ray`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from autopeft.errors import InputError, MissingExtra
from autopeft.study.executors.memory import as_text

OBJECT_STORE = 512 << 20
_ANSWER_SECONDS = 5.0
# Unix sockets live in the folder of the session, and their paths may have no more than 107 characters.
_LONGEST_FOLDER = 36
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_SET_BY_RAY = ("PYTHONBREAKPOINT",)
_START = "start one with 'ray start --head' and give the address it prints, or leave the address out"
_TOKEN = (
    "set RAY_AUTH_MODE=token and put the cluster's token into ~/.ray/auth_token, or name its file in"
    " RAY_AUTH_TOKEN_PATH ('ray get-auth-token' on the head node prints it)"
)


def import_ray() -> Any:
    """Returns the package; raises MissingExtra where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("ray", extra="ray") from error


@final
class Cluster:
    """A connection to a Ray cluster.

    A program that has called `ray.init` itself keeps its connection: it is used and left open.

    Args:
        address: "auto", "host:port", or None for a cluster of our own, unless RAY_ADDRESS names one.
        cpus: CPUs that a cluster of our own offers.
        object_store: Bytes of shared memory of a cluster of our own for what is in transit; more goes through the disk.
        runtime_env: What Ray prepares on the nodes ("working_dir", "env_vars", ...), or None.

    Attributes:
        ray: The package.
        ours: Whether we have started the cluster.
        options: What every actor has to be given besides its resources.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: There is no cluster at the address, or it refuses us.
    """

    def __init__(
        self,
        address: str | None,
        cpus: int,
        object_store: int = OBJECT_STORE,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        imported = "ray" in sys.modules
        address = address or os.environ.get("RAY_ADDRESS") or None
        self.ours = address in (None, "local")
        self._folder: Path | None = None
        self._print: Any = None
        self.options: Mapping[str, Any] = {}
        environment = dict(runtime_env) if runtime_env else None
        if imported and import_ray().is_initialized():
            self.ray, self._connected, self.ours = import_ray(), False, False
            self.options = {"runtime_env": environment} if environment else {}
            return
        self._connected = False
        try:
            if self.ours:
                self._start(cpus, object_store, environment)
            else:
                self._connect(str(address), environment)
        except BaseException:
            self.close()
            raise

    def nodes(self) -> list[Mapping[str, float]]:
        """Returns what each node that is alive offers in all: "CPU", "GPU", "memory" and so on."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def shortage(self, needs: Mapping[str, float]) -> str:
        """Says why no node has room for these amounts, even if it had nothing else to do; "" where one has."""
        nodes = self.nodes()
        if any(all(node.get(kind, 0) >= amount for kind, amount in needs.items()) for node in nodes):
            return ""
        offers = "; ".join(_amounts({kind: node.get(kind, 0) for kind in needs}) for node in nodes)
        return f"one worker needs {_amounts(needs)}, and no node of the Ray cluster has that ({offers or 'none'})"

    def close(self) -> None:
        """Ends what was begun here; safe to call twice."""
        if self._connected:
            self._connected = False
            with _signals_kept():
                self.ray.shutdown()
            if self._print is not None:
                self.ray._private.worker.print_to_stdstream = self._print
            _read_settings(self.ray)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self, cpus: int, object_store: int, runtime_env: dict[str, Any] | None) -> None:
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            _LOOPBACK_ONLY: "0",
        }
        short = len(tempfile.gettempdir()) <= _LONGEST_FOLDER - len("/autopeft-12345678")
        with _environment(own):
            self.ray = import_ray()
            self._folder = Path(tempfile.mkdtemp(prefix="autopeft-", dir=None if short else "/tmp"))
            with _loopback(self.ray):
                self._initialise(
                    "local",
                    num_cpus=cpus,
                    object_store_memory=object_store,
                    include_dashboard=False,
                    runtime_env=runtime_env,
                    _temp_dir=str(self._folder / "r"),  # Ray opens it to everybody; the folder around it stays closed
                )

    def _connect(self, address: str, runtime_env: dict[str, Any] | None) -> None:
        if "://" in address:
            cure = "give host:port, on a machine that belongs to the cluster, or submit the command as a Ray job"
            raise InputError(
                f"'{address}' is an address of Ray Client, which is not supported", where="address", cure=cure
            )
        if address != "auto":
            _require_answer(address)
        self.ray = import_ray()
        token = "token" if "RAY_AUTH_MODE" not in os.environ and _has_token(self.ray) else None
        with _environment({"RAY_AUTH_MODE": token} if token else {}):
            try:
                if address != "auto":
                    # Told at once here; `init` would try for twenty seconds.
                    _read_settings(self.ray)
                    self.ray._raylet.GcsClient(address=address)
                    # Ray takes 127.0.0.1 for the address by which others reach this machine.
                    _require_answer(self.ray._private.services.canonicalize_bootstrap_address(address))
                self._initialise(address, runtime_env=runtime_env)
            except self.ray.exceptions.AuthenticationError as error:
                what = f"the Ray cluster at {address} refuses us: the token is missing or wrong"
                raise InputError(what, where="address", cure=_TOKEN) from error
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                reasons = [str(reason).strip().partition("\n")[0] for reason in (error, error.__cause__) if reason]
                what = f"cannot join the Ray cluster '{address}': {'; '.join(reasons)[:300]}"
                raise InputError(what, where="address", cure=_START) from error

    def _initialise(self, address: str, **options: Any) -> None:
        _read_settings(self.ray)
        self._connected = True
        with _signals_kept():
            # What nodes report goes to standard output otherwise, where a command prints its result.
            self._print = self.ray._private.worker.print_to_stdstream
            self.ray._private.worker.print_to_stdstream = _say_nothing
            self.ray.init(address, log_to_driver=False, logging_level="ERROR", **options)


def _amounts(amounts: Mapping[str, float]) -> str:
    """Returns amounts in words: "2 CPUs, 1 GPU, 3.0 GiB of memory"."""
    words = [f"{amount:g} {kind}{'' if amount == 1 else 's'}" for kind, amount in amounts.items() if kind != "memory"]
    return ", ".join([*words, f"{as_text(int(amounts['memory']))} of memory"] if "memory" in amounts else words)


def _require_answer(address: str) -> None:
    """Raises InputError unless somebody listens there: Ray itself would try for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"'{address}' is no address", where="address", cure='use "auto" or "host:port"')
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster answers at {address} ({error})", where="address", cure=_START) from error


def _has_token(ray: Any) -> bool:
    loader = ray._raylet.AuthenticationTokenLoader.instance()
    loader.reset_cache()
    return bool(loader.has_token(ignore_auth_mode=True))


def _read_settings(ray: Any) -> None:
    """Makes Ray read the mode of authentication and the token again: it does that once, at its import."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for as long as Ray starts, and undoes with them what it sets itself."""
    before = {name: os.environ.get(name) for name in (*changes, *_SET_BY_RAY)}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Makes Ray take 127.0.0.1 for this machine's address, as it does on macOS; it then listens nowhere else.

    On Linux it replaces an address of 127.0.0.1 that it is given by one that others can reach.
    """
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Lets no Ctrl-C cut short what must be ended in order; outside the main thread none would come."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts back the handler of SIGTERM, which Ray replaces: what SIGTERM means is for the study to say."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _say_nothing(data: object, ignore_prefix: bool) -> None:
    """Stands for Ray's function that prints."""
