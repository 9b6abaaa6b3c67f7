"""What is free, what is used, and how it is said."""

import subprocess
from types import SimpleNamespace

import psutil
import pytest

from qlora_core.machine import memory
from qlora_core.machine.memory import GB, MB, MemoryMonitor, available_bytes, total_bytes


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


VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                5234.
Pages active:                            240117.
Pages inactive:                          232402.
Pages speculative:                         6890.
Pages throttled:                              0.
Pages wired down:                        120000.
Pages purgeable:                          10000.
"Translation faults":                 912345678.
Pages copy-on-write:                   21234567.
Pages zero filled:                    412345678.
Pages reactivated:                     34567890.
Pages purged:                           4567890.
File-backed pages:                       169409.
Anonymous pages:                         310000.
Pages stored in compressor:              612345.
Pages occupied by compressor:            200000.
Decompressions:                        45678901.
Compressions:                          56789012.
Pageins:                               12345678.
Pageouts:                                234567.
Swapins:                                1234567.
Swapouts:                               2345678.
"""
"""As macOS prints it on Apple silicon; the numbers are made up."""
LEFT = 16 * 2**30 - (310_000 - 10_000 + 120_000 + 200_000) * 16_384


@pytest.mark.parametrize(
    ("text", "available"),
    [
        (VM_STAT, LEFT),
        (VM_STAT.replace("16384", "4096"), 16 * 2**30 - 620_000 * 4_096),
        (VM_STAT.replace("Anonymous", "Unnamed"), 10 * GB),
        (VM_STAT.partition("\n")[2], 10 * GB),
        (VM_STAT[:200], 10 * GB),
        ("", 10 * GB),
    ],
    ids=["16 KiB", "4 KiB", "a number is missing", "no page size", "cut", "nothing"],
)
def test_on_a_mac_it_is_what_activity_monitor_says_or_psutil(machine, monkeypatch, text, available):
    machine(available=10 * GB, total=16 * 2**30)
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory, "_vm_stat", lambda: text)
    assert available_bytes() == available


def test_vm_stat_is_asked_and_may_be_missing_fail_or_hang(machine, monkeypatch, tmp_path):
    machine(available=10 * GB, total=16 * 2**30)
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    program = tmp_path / "vm_stat"
    monkeypatch.setattr(memory, "VM_STAT", str(program))
    assert available_bytes() == 10 * GB
    for script, available in ((f"cat <<'END'\n{VM_STAT}END", LEFT), ("exit 1", 10 * GB)):
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o700)
        assert available_bytes() == available

    def hang(*_, **__):
        raise subprocess.TimeoutExpired("vm_stat", 5)

    monkeypatch.setattr(memory.subprocess, "run", hang)
    assert available_bytes() == 10 * GB


def test_elsewhere_vm_stat_is_not_asked(machine, monkeypatch):
    machine(available=10 * GB)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_vm_stat", lambda: pytest.fail("asked"))
    assert available_bytes() == 10 * GB
