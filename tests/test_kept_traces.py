"""A report reads no second of a recording twice, and gets the same numbers as without memory."""

from collections import Counter

import numpy as np
import pytest
from arrays import ArrayTraces

from spikewise.output import kept_traces
from spikewise.output.kept_traces import KeptTraces

RATE = 1000.0


class Counted(ArrayTraces):
    """Traces that count how often each second is read."""

    def __init__(self, *segments, **options):
        super().__init__(*segments, **options)
        self.seconds = Counter()

    def read(self, segment_index, start, stop):
        self.seconds.update((segment_index, second) for second in range(start // 1000, -(-stop // 1000)))
        return super().read(segment_index, start, stop)


@pytest.fixture
def traces():
    generator = np.random.default_rng(0)
    return Counted(
        *(generator.normal(0, 20, (length, 6)).astype(np.float32) for length in (4500, 2000)),
        sampling_frequency=RATE,
    )


WINDOWS = [(0, 100, 200), (0, 950, 1080), (0, -30, 40), (0, 4400, 4600), (1, 0, 2000)]


@pytest.mark.parametrize("window", WINDOWS)
def test_any_window_is_what_the_traces_hold(traces, window):
    kept = KeptTraces(traces)
    for _ in range(2):
        np.testing.assert_array_equal(kept.read(*window), ArrayTraces.read(traces, *window))
    assert max(traces.seconds.values()) == 1


def test_large_seconds_are_kept_in_half_precision_and_read_once(traces):
    kept = KeptTraces(traces, memory_bytes=3 * 1000 * 6 * 2)  # three of seven seconds
    for number in (0, 2, 4, 0, 2, 4):
        part = kept.read(0, 1000 * number + 100, 1000 * number + 400)
        expected = ArrayTraces.read(traces, 0, 1000 * number + 100, 1000 * number + 400)
        np.testing.assert_allclose(part, expected, rtol=1e-3, atol=1e-4)
    assert traces.seconds == {(0, 0): 1, (0, 2): 1, (0, 4): 1}
    kept.read(0, 1000, 2000)  # no room is left
    kept.read(0, 1100, 1200)  # the last one is there all the same
    assert traces.seconds[0, 1] == 1


def test_wanted_windows_are_cut_when_their_second_is_read(traces):
    window = (1, 1200, 1250)
    kept = KeptTraces(traces, [window], memory_bytes=0)
    kept.read(1, 1000, 1100)
    kept.read(0, 0, 10)
    np.testing.assert_array_equal(kept.read(*window), ArrayTraces.read(traces, *window))
    assert traces.seconds[1, 1] == 1
    assert kept_traces.MEMORY_BYTES >= 22 * 30000 * 384 * 2
