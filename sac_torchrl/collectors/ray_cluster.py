"""The Ray cluster of a run: a running one that asks for a token, or one of this machine alone."""

import importlib
import ipaddress
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sac_torchrl.errors import ConfigError
from sac_torchrl.orphans import marked, temporary_folder
from sac_torchrl.signals import handlers_kept


def has_token() -> bool:
    """Whether the environment has Ray ask for a token, and a token is where Ray reads it."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return os.environ.get("RAY_AUTH_MODE") == "token" and (given or Path("~/.ray/auth_token").expanduser().is_file())


@contextmanager
def connected(address: str | None, *, cpus: int) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or to one of this machine alone that ends with the block.

    Raises ConfigError where the process is connected already, and where the cluster has fewer than `cpus` CPUs.
    """
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        raise ConfigError(
            "collector=ray: this process is connected to a Ray cluster already: call ray.shutdown() first."
        )
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _local_cluster(ray, cpus=cpus) if address is None else nullcontext({"address": address}) as place:
        try:
            with marked(), handlers_kept():
                ray.init(**place, **quiet)
            if address is None:
                _check_loopback(ray)
            if (there := available_cpus(ray)) < cpus:
                raise ConfigError(
                    f"collector.workers={cpus}: the Ray cluster has {there:g} CPUs; give it more, or fewer workers."
                )
            yield ray
        finally:
            with handlers_kept():
                ray.shutdown()


@contextmanager
def _local_cluster(ray: Any, *, cpus: int) -> Iterator[dict[str, Any]]:
    """The arguments of `ray.init` for a cluster of this machine that other users cannot reach.

    Ray takes a token from the process's environment, which it reads only once, when TorchRL imports it. And it replaces
    the node address 127.0.0.1 by the machine's address in the network, unless its switch for clusters of several
    machines is off. So both are set and read again, as Ray's own tests do.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def reread() -> None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    several = constants.ENABLE_RAY_CLUSTER
    folder = temporary_folder("ray-")
    try:
        with _environment(secret):
            constants.ENABLE_RAY_CLUSTER = False
            reread()
            yield {
                "address": "local",
                "num_cpus": cpus,
                "include_dashboard": False,
                "_temp_dir": folder,
                "_node_ip_address": "127.0.0.1",
                "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
            }
    finally:
        constants.ENABLE_RAY_CLUSTER = several
        reread()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the process's environment within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_loopback(ray: Any) -> None:
    """Raise ConfigError if Ray opened its ports to the network after all, or asks for no token."""
    raylet: Any = importlib.import_module("ray._raylet")
    addresses = [node["NodeManagerAddress"] for node in ray.nodes()]
    asks = raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN
    if not (asks and all(ipaddress.ip_address(address).is_loopback for address in addresses)):
        raise ConfigError(
            f"collector=ray: Ray {ray.__version__} opens its local cluster to the network ({', '.join(addresses)}): "
            "start a cluster with a token and give collector.address (docs/ray.md)."
        )


def available_cpus(ray: Any) -> float:
    """The number of CPUs of the cluster."""
    return float(ray.cluster_resources().get("CPU", 0))
