"""Whether a run fits: a verdict for each kind of machine, and what it will write."""

import dataclasses

import pytest

from qlora_core.machine.memory import GB
from qlora_core.reports.fit_text import fit_lines
from qlora_core.runs import fit as fits
from qlora_core.runs.fit import disk_bytes, fit
from qlora_core.runs.memory_estimate import PROGRAM_BYTES, RESERVE_BYTES, MemoryEstimate

MEMORY = MemoryEstimate(weights=4 * GB, dense=0, adapters=GB // 10, activations=GB, attention=GB // 10, logits=GB // 2)
PEAK = sum(vars(MEMORY).values()) + PROGRAM_BYTES


@pytest.fixture
def planned(plan):
    """A plan of the tiny model that is said to need about 6 GB."""
    return dataclasses.replace(plan()[1], memory=MEMORY)


@pytest.mark.parametrize(
    ("free", "machine", "verdict", "words"),
    [
        (16, 32, "fits", "✓ It fits: 6.35 GB wanted, 16.00 GB free."),
        (7, 8, "tight", "It only just fits: 6.35 GB wanted, 7.00 GB free"),
        (5, 8, "close programs", "✗ It does not fit now: 6.35 GB wanted, 5.00 GB of 8.00 GB free. What helps: close"),
        (4, 4, "too large", "✗ It does not fit this machine: 6.35 GB wanted, 4.00 GB in all. What helps:"),
    ],
)
def test_a_verdict_for_each_machine(planned, free, machine, verdict, words):
    found = fit(planned, free * GB, machine * GB)
    assert found.needed == PEAK + RESERVE_BYTES
    assert found.verdict == found.as_dict()["verdict"] == verdict
    assert words in fit_lines(found, planned.config)


def test_a_large_model_leaves_what_the_setting_says(planned, monkeypatch):
    monkeypatch.setattr(fits, "LARGE_MODEL", 0)
    config = dataclasses.replace(planned.config, pace=dataclasses.replace(planned.config.pace, min_free_gb=3.0))
    found = fit(dataclasses.replace(planned, config=config), 8 * GB, 8 * GB)
    assert found.needed == 4 * GB + PROGRAM_BYTES + 3 * GB


def test_the_disk_counts_checkpoints_and_copies(planned, monkeypatch):
    adapters = 4 * planned.model.trainable(planned.config.lora)
    keeping = dataclasses.replace(planned.config.pace, keep_checkpoints=2)
    two = dataclasses.replace(planned, config=dataclasses.replace(planned.config, pace=keeping))
    assert disk_bytes(two) == (2 * 3 + 3) * adapters
    found = fit(two, 16 * GB, 16 * GB)
    assert found.disk_suffices
    assert "The disk is too full" in fit_lines(dataclasses.replace(found, disk_free=0), planned.config)


def test_without_an_earlier_run_the_time_is_not_known(planned):
    found = fit(planned, 16 * GB, 16 * GB)
    assert not found.time.known
    assert "not known before this base was trained here" in fit_lines(found, planned.config)
    with pytest.raises(ValueError, match="without rows"):
        fit(dataclasses.replace(planned, memory=None), GB, GB)
