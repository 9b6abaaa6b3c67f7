"""The share of the processors' time."""

import time

from qlora_core.machine.processors import ProcessorMeter


def test_work_is_seen():
    meter, end = ProcessorMeter(), time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    found = meter.percent()
    assert found is not None
    assert 0 < found <= 100


def test_no_time_no_share():
    meter = ProcessorMeter()
    meter.percent()
    found = {meter.percent() for _ in range(3)}  # the kernel counts in hundredths of a second
    assert all(share is None or 0 <= share <= 100 for share in found)
