"""What is free, what is used, and how it is said."""

from types import SimpleNamespace

import psutil
import pytest

from qlora_core import memory
from qlora_core.memory import GB, MB, MemoryMonitor, available_bytes, total_bytes


@pytest.fixture
def machine(monkeypatch):
    """A machine with this much memory and, if told, a container's limit."""

    def make(*, available, total=64 * GB, limit=None, used=None, cached=0):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=total))
        monkeypatch.setattr(memory, "_cgroup", {"memory.max": limit, "memory.current": used}.get)
        monkeypatch.setattr(memory, "_cgroup_file_cache", lambda: cached)

    return make


@pytest.mark.parametrize(
    ("container", "available", "total"),
    [
        ({}, 10 * GB, 64 * GB),
        ({"limit": 8 * GB, "used": 5 * GB}, 3 * GB, 8 * GB),
        ({"limit": 8 * GB, "used": 5 * GB, "cached": 2 * GB}, 5 * GB, 8 * GB),  # the kernel gives cached files back
        ({"limit": 8 * GB, "used": 9 * GB}, 0, 8 * GB),
        ({"limit": 128 * GB, "used": 1 * GB}, 10 * GB, 64 * GB),  # a limit above what the machine has
        ({"used": 5 * GB}, 10 * GB, 64 * GB),
    ],
)
def test_what_is_available_is_the_machines_or_the_containers_rest(machine, container, available, total):
    machine(available=10 * GB, **container)
    assert (available_bytes(), total_bytes()) == (available, total)


def test_log_memory_says_it_in_the_notebooks_words(machine):
    machine(available=3400 * MB + 999_999)
    said = []
    sample = MemoryMonitor(said.append).log_memory("Epoch 1 start")
    assert said == ["[Memory] Epoch 1 start: 3400MB available"]
    assert sample.available == 3400 * MB + 999_999


def test_without_anybody_to_tell_it_only_looks(machine):
    machine(available=GB)
    assert MemoryMonitor().log_memory("start").available == GB


def test_the_devices_numbers_come_along(machine):
    machine(available=GB)
    sample = MemoryMonitor(counters=lambda: {"active": 7, "peak": 9}).sample()
    assert (sample.available, sample.active, sample.peak) == (GB, 7, 9)
    assert MemoryMonitor().sample().peak == 0


def test_on_a_gpu_with_memory_of_its_own_that_is_what_is_available(machine):
    machine(available=GB)
    assert MemoryMonitor(counters=lambda: {"active": 0, "peak": 0, "free": 70 * GB}).sample().available == 70 * GB


def test_the_process_is_measured():
    sample = MemoryMonitor().sample()
    assert sample.process == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert sample.process_peak > 10 * MB


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_bytes_whatever_the_system_counts_in(monkeypatch, platform, unit):
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=5000))
    assert memory.peak_process_bytes() == 5000 * unit
