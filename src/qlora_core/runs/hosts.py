"""The machines of one run, from a file as `mlx.distributed_config` writes it. Knows nothing of mlx.

    {"backend": "ring", "envs": ["KEY=VALUE"], "hosts": [{"ssh": "mini-1", "ips": ["10.0.0.1"], "rdma": []}, ...]}

or the list of hosts alone, as older versions of MLX wrote it. A host that is named twice has two devices.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path

import msgspec
import psutil

from ..config import PaceConfig
from ..errors import ConfigError, shown
from ..files.untrusted_json import read_text
from ..translations import Sentence

BACKENDS = ("", "ring", "nccl", "jaccl", "jaccl-ring")
"""Of MLX's engine; without one, it follows from the devices. `mpi` would need a launcher of its own."""

_NAME = re.compile(r"[\w.][\w.:%@-]*")  # none that ssh would take for an option
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*")
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Host(msgspec.Struct, frozen=True):
    """A device of a run, by the machine that it is in.

    Attributes:
        ssh: name by which `ssh` reaches the machine.
        ips: addresses at which the engine reaches it.
        rdma: for each host, the RDMA devices that lead there; None for itself.
        python: the Python there; by default at the path of this one. MLX's own tools do not know this key.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[str | tuple[str, ...] | None, ...] = ()
    python: str = ""


class Hosts(msgspec.Struct, frozen=True):
    """The machines of a run.

    Attributes:
        hosts: one for each device; this machine's come first.
        backend: of MLX's engine; empty: as the devices need.
        envs: `KEY=VALUE`, variables that the other machines' processes get.
    """

    hosts: tuple[Host, ...]
    backend: str = ""
    envs: tuple[str, ...] = ()

    @property
    def here(self) -> int:
        """Return the number of devices in this machine."""
        return sum(host.ssh == self.hosts[0].ssh for host in self.hosts)


def hosts_of(pace: PaceConfig) -> Hosts | None:
    """Return the machines of a run; None if this one trains alone.

    Raises:
        ConfigError: the file cannot be read, or a host in it cannot be used; it is named.
    """
    if not pace.hosts:
        return None
    path = Path(pace.hosts).expanduser()
    hosts = _read(path)
    if problem := _problem(hosts):
        raise ConfigError(Sentence.of_parts(": ", [str(path), problem]))
    if pace.devices > 1:
        raise ConfigError(
            Sentence(
                "--devices {devices} counts devices of this machine alone; with --hosts, {file} has a line for each "
                "device, and may name a host twice. Leave --devices out.",
                devices=pace.devices, file=str(path),
            )
        )  # fmt: skip
    return hosts


def devices_of(pace: PaceConfig) -> tuple[int, int]:
    """Return the number of a run's devices, and of those in this machine.

    Raises:
        ConfigError: as `hosts_of` raises it.
    """
    hosts = hosts_of(pace)
    return (len(hosts.hosts), hosts.here) if hosts else (pace.devices, pace.devices)


def _read(path: Path) -> Hosts:
    try:
        text = read_text(path)
        try:
            return msgspec.json.decode(text, type=Hosts)
        except msgspec.ValidationError:
            if not text.lstrip().startswith("["):
                raise
            return Hosts(msgspec.json.decode(text, type=tuple[Host, ...]))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            Sentence(
                "--hosts {file}: it cannot be read ({reason}). Wanted a file that `mlx.distributed_config` writes.",
                file=str(path), reason=reason,
            )
        ) from None  # fmt: skip
    except (ValueError, RecursionError) as error:  # msgspec's errors are values too
        raise ConfigError(
            Sentence(
                '--hosts {file}: {error}. Wanted {{"hosts": [{{"ssh": "NAME", "ips": ["ADDRESS"]}}, …]}}, as '
                "`mlx.distributed_config` writes it.",
                file=str(path), error=str(error),
            )
        ) from None  # fmt: skip


def _problem(hosts: Hosts) -> Sentence | str:
    """Return why these hosts cannot train together; empty if nothing is wrong."""
    if len(hosts.hosts) < 2:
        return Sentence("it names fewer than two hosts; wanted this machine first, then the others.")
    if hosts.backend not in BACKENDS:
        wanted = ", ".join(BACKENDS[1:])
        return Sentence("backend {found}; wanted one of {wanted}.", found=shown(hosts.backend), wanted=wanted)
    if wrong := [one for one in hosts.envs if not _VARIABLE.fullmatch(one)]:
        return Sentence("envs has {found}; wanted KEY=VALUE.", found=shown(wrong[0]))
    for number, host in enumerate(hosts.hosts, 1):
        if problem := _host_problem(host, len(hosts.hosts), rdma=hosts.backend.startswith("jaccl")):
            return Sentence.of_parts(": ", [Sentence("host {number}", number=number), problem])
    owners: dict[str, str] = {}
    for host in hosts.hosts:
        for address in host.ips:
            if (other := owners.setdefault(address, host.ssh)) != host.ssh:
                return Sentence(
                    "{address} is the address of {one} and of {other}; each machine needs its own.",
                    address=address, one=other, other=host.ssh,
                )  # fmt: skip
    loopback = [ipaddress.IPv4Address(address).is_loopback for address in owners]
    if any(loopback) and not all(loopback):
        address = list(owners)[loopback.index(True)]
        return Sentence("{address} is an address that no other machine reaches; give {name} one of its network.",
                        address=address, name=owners[address])  # fmt: skip
    first = hosts.hosts[0]
    if not is_this_machine(first):
        return Sentence(
            "the first host is {name}, which is not this machine ({here}). Put this machine first, or start the run "
            "there.",
            name=first.ssh, here=", ".join([socket.gethostname(), *_addresses()][:4]),
        )  # fmt: skip
    return ""


def _host_problem(host: Host, count: int, *, rdma: bool) -> Sentence | str:
    if not _NAME.fullmatch(host.ssh):
        return Sentence("ssh is {found}; wanted a name that ssh reaches.", found=shown(host.ssh))
    if not host.ips:
        return Sentence("{name} has no ips; the devices exchange numbers by address.", name=host.ssh)
    for address in host.ips:
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            return Sentence("{name} has the address {found}; wanted one like 10.0.0.2.",
                            name=host.ssh, found=shown(address))  # fmt: skip
    if rdma and len(host.rdma) != count:
        return Sentence(
            "{name} lists {found} RDMA devices; wanted {count}, one for each host.",
            name=host.ssh, found=len(host.rdma), count=count,
        )  # fmt: skip
    return ""


def is_this_machine(host: Host) -> bool:
    """Return whether a host is the machine that this program runs on."""
    name = host.ssh.rpartition("@")[2].lower()
    own = socket.gethostname().lower()
    return name in (*_LOCAL, own, own.partition(".")[0], f"{own.partition('.')[0]}.local") or bool(
        {name, *host.ips} & set(_addresses())
    )


def _addresses() -> list[str]:
    """Return this machine's addresses, those that others reach first."""
    found = [one.address for each in psutil.net_if_addrs().values() for one in each if one.family == socket.AF_INET]
    return sorted(found, key=lambda address: address.startswith("127."))
