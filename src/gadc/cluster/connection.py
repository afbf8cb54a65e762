"""Joining a cluster of Ray, or starting Ray on this machine."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal, get_args

from gadc.cluster.tasks import Cluster, first_line
from gadc.errors import InputError, MissingExtraError, RunError

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]
ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Where Ray itself looks for an address; it sets the variable in jobs that it runs."""
FOUND_BY_RAY = "auto"
CONNECT_SECONDS = 5.0
JOIN_SECONDS = 15.0
"""Joining takes two seconds. Where something else answers, Ray's own patience is two minutes."""
JOIN = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
NO_TOKEN = b"Unauthenticated"
USAGE_REPORTS = "RAY_USAGE_STATS_ENABLED"


def check_engine(engine: Engine, *, address: str | None, workers: int | None, device: str) -> None:
    """Refuse what no engine can do.

    Raises:
        InputError: An unknown engine, no workers, an address without Ray, or one GPU for all of
            Ray's tasks.
    """
    if workers is not None and workers < 1:
        raise InputError("bad_argument", f"workers={workers} must be >= 1")
    if engine not in get_args(Engine):
        raise InputError("bad_choice", f"engine={engine}; use 'local' or 'ray'")
    if engine == "local" and address is not None:
        raise InputError("option_unused", f"address={address} needs engine=ray")
    if engine == "ray" and ":" in device:
        raise InputError(
            "option_conflict",
            f"device={device} names one GPU, but Ray gives each task one; use device=cuda",
        )


@contextlib.contextmanager
def joined(engine: Engine, address: str | None, n_workers: int | None) -> Iterator[Cluster | None]:
    """Join a cluster of Ray, or start Ray on this machine, and leave or stop it in the end.

    A process that is connected to Ray already stays so, and that connection is used.

    Args:
        engine: `local` does nothing.
        address: `HOST:PORT` of a cluster, or `auto`; None for the one that the environment variable
            `RAY_ADDRESS` names, else for Ray on this machine.
        n_workers: The most tasks at the same time; None for one per CPU, or per GPU for those.

    Yields:
        Where tasks can be run; None for the engine `local`.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: `no_cluster`: no cluster there, or one of other versions.
        RunError: `cluster_failed`: Ray doesn't start.
    """
    if engine == "local":
        yield None
        return
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra", "engine=ray needs Ray: pip install 'gadc[ray]'"
        ) from error
    if ray.is_initialized():
        if address is not None:
            raise InputError(
                "option_unused",
                f"address={address}, but this process is connected to Ray already; leave it out",
            )
        yield Cluster(n_workers)
        return
    where = address or os.environ.get(ADDRESS_VARIABLE)
    if where is not None:
        _check_reachable(where)
    try:
        # Ray writes what goes wrong to stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            with _own_signal_handlers():
                _start(where, n_workers)
            yield Cluster(n_workers)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Join in a process that can be stopped: within Ray, a wrong address costs two minutes."""
    if address != FOUND_BY_RAY:
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal():
            raise _no_cluster(address, "it is not HOST:PORT, such as 10.0.0.1:6379, or auto")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise _no_cluster(address, f"{error}") from error
    try:
        joining = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOIN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        # Not done for the user: it would send the token to whatever has the address.
        wants_token = NO_TOKEN in (error.stderr or b"")
        raise _no_cluster(
            address,
            "it wants a token: set RAY_AUTH_MODE=token"
            if wants_token
            else f"no Ray answers within {JOIN_SECONDS:.0f} s; is it the port of the head node?",
        ) from error
    if joining.returncode:
        raise _no_cluster(address, _reason(joining.stderr))


def _reason(errors: str) -> str:
    """Return the exception that ended a process, on one line."""
    lines = errors.strip().splitlines() or ["no reason given"]
    starts = [number for number, line in enumerate(lines) if "Error: " in line]
    return " ".join(" ".join(lines[starts[-1] if starts else -1 :]).split())


def _no_cluster(address: str, reason: str) -> InputError:
    return InputError(
        "no_cluster",
        f"can't join the Ray cluster of address={address} ({reason}); start one with `ray start "
        "--head`, run this command on a machine of it, or leave the address out to use this "
        "machine alone",
    )


def _start(address: str | None, n_workers: int | None) -> None:
    import ray
    from ray.exceptions import RayError

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            ray.init(address, **quiet)
        else:
            with _no_usage_reports():
                ray.init("local", num_cpus=n_workers, include_dashboard=False, **quiet)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise RunError(
            "cluster_failed", f"Ray doesn't start: {first_line(error)}; its logs are in /tmp/ray"
        ) from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    logger.info("Ray: %d machines, %s", len(nodes), _resources())


def _resources() -> str:
    import ray

    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):.0f} CPUs, {found.get('GPU', 0):.0f} GPUs"


@contextlib.contextmanager
def _no_usage_reports() -> Iterator[None]:
    """Keep a Ray that only gadc uses from reporting to its makers, unless the user wants it."""
    is_chosen = USAGE_REPORTS in os.environ
    os.environ.setdefault(USAGE_REPORTS, "0")
    try:
        yield
    finally:
        if not is_chosen:
            del os.environ[USAGE_REPORTS]


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put back the handler of SIGTERM that Ray replaces: ending a run is our business."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
