"""The file of machines: what MLX's own tools write is read, and what is wrong is named."""

import json
import socket

import pytest

from qlora_core.config import PaceConfig
from qlora_core.errors import ConfigError
from qlora_core.runs.hosts import Host, devices_of, hosts_of

HERE, FAR = {"ssh": "localhost", "ips": ["127.0.0.1"]}, {"ssh": "mini-2", "ips": ["127.0.0.2"]}


@pytest.fixture
def read(tmp_path):
    """Read a file with this content."""

    def of(content, **settings):
        path = tmp_path / "hosts.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return hosts_of(PaceConfig(hosts=str(path), **settings))

    return of


def test_as_mlx_writes_it(read, tmp_path):
    """Copied in shape from `mlx._distributed_utils.common.Hostfile.to_json`, with its RDMA devices."""
    one = {"ssh": socket.gethostname(), "ips": ["10.0.0.1"], "rdma": [None, "rdma_en2", ["rdma_en3", "rdma_en4"]]}
    other = {"ssh": "me@mini-2.local", "ips": ["10.0.0.2", "10.0.1.2"], "rdma": ["rdma_en2", None, "rdma_en3"]}
    third = {"ssh": "mini-3", "ips": ["10.0.0.3"], "rdma": ["rdma_en2", "rdma_en3", None], "python": "/opt/py/python"}
    found = read({"backend": "jaccl", "envs": ["MLX_METAL_FAST_SYNCH=1"], "hosts": [one, other, third]})
    assert (found.backend, found.envs, found.here) == ("jaccl", ("MLX_METAL_FAST_SYNCH=1",), 1)
    assert found.hosts[1] == Host("me@mini-2.local", ("10.0.0.2", "10.0.1.2"), ("rdma_en2", None, "rdma_en3"))
    assert found.hosts[2].python == "/opt/py/python"
    assert devices_of(PaceConfig(hosts=str(tmp_path / "hosts.json"))) == (3, 1)


def test_a_list_and_a_machine_with_two_devices(read):
    assert [host.ssh for host in read([HERE, FAR]).hosts] == ["localhost", "mini-2"]
    assert read([HERE, HERE, FAR]).here == 2
    assert hosts_of(PaceConfig()) is None
    assert devices_of(PaceConfig(devices=3)) == (3, 3)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", "hosts.json: Input data was truncated. Wanted {"),
        ("{}", "hosts.json: Object missing required field `hosts`. Wanted {"),
        ('{"hosts": [', "hosts.json: Input data was truncated"),
        ("mini-1\nmini-2\n", r"hosts.json: JSON is malformed: .* \(byte 0\)"),
        ('[{"ssh": "localhost", "ips": "10.0.0.1"}]', r"Expected `array`, got `str` - at `\$\[0\].ips`"),
        ("[]", "names fewer than two hosts; wanted this machine first"),
        ([HERE], "names fewer than two hosts"),
        ([HERE, {"ssh": "-oProxyCommand=rm", "ips": ["127.0.0.2"]}], "host 2: ssh is '-oProxyCommand=rm'; wanted a"),
        ([HERE, {"ssh": "a b", "ips": ["127.0.0.2"]}], "host 2: ssh is 'a b'"),
        ([HERE, {"ssh": "mini-2"}], "host 2: mini-2 has no ips"),
        ([HERE, {"ssh": "mini-2", "ips": ["mini-2"]}], "host 2: mini-2 has the address 'mini-2'; wanted one like"),
        ([HERE, {"ssh": "mini-2", "ips": ["127.0.0.1"]}], "127.0.0.1 is the address of localhost and of mini-2"),
        ([HERE, {"ssh": "mini-2", "ips": ["10.0.0.2"]}], "127.0.0.1 is an address that no other machine reaches"),
        ([FAR, HERE], r"the first host is mini-2, which is not this machine \(.+\). Put this machine first"),
        ({"hosts": [HERE, FAR], "backend": "mpi"}, "backend 'mpi'; wanted one of ring, nccl, jaccl, jaccl-ring"),
        ({"hosts": [HERE, FAR], "backend": "jaccl"}, "host 1: localhost lists 0 RDMA devices; wanted 2"),
        ({"hosts": [HERE, FAR], "envs": ["A B"]}, "envs has 'A B'; wanted KEY=VALUE"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(read, content, wanted):
    with pytest.raises(ConfigError, match=wanted):
        read(content)


def test_no_file_and_two_counts_of_devices(read, tmp_path):
    with pytest.raises(ConfigError, match=r"--hosts .*none.json: it cannot be read \(No such file or directory\)"):
        hosts_of(PaceConfig(hosts=str(tmp_path / "none.json")))
    with pytest.raises(ConfigError, match="--devices 2 counts devices of this machine alone"):
        read([HERE, FAR], devices=2)
