"""The compiled filter, reference and scaling give what SpikeInterface's chain gives."""

from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest
import scipy.signal
import spikeinterface.preprocessing as spre
import torch
from spikeinterface.core import NumpyRecording

from spikewise.core.compiling import compiled, keep_compiled
from spikewise.data.recordings import conditioning
from spikewise.data.recordings.conditioning import ConditionedRecording, bandpass, medians
from spikewise.data.recordings.conditioning_loops import are_finite

RATE = 32000.0
BAND = (300.0, 6000.0)


def raw_traces(num_samples: int = 4000, num_channels: int = 20, dtype: str = "int16") -> np.ndarray:
    """Noise on slow waves and an offset, as raw recordings have."""
    random = np.random.default_rng(3)
    time = np.arange(num_samples)[:, None] / RATE
    slow = 400 * np.sin(2 * np.pi * 5 * time + np.arange(num_channels))
    return (random.normal(0, 20, (num_samples, num_channels)) + slow + 250).astype(dtype)


@pytest.mark.parametrize("dtype", ["int16", ">i2", "int32", "float32", "float64"])
@pytest.mark.parametrize("num_channels", [1, 20, 131])
def test_filter_is_that_of_scipy(dtype, num_channels):
    traces = raw_traces(num_channels=num_channels, dtype=dtype)
    sections = scipy.signal.butter(5, BAND, "bandpass", output="sos", fs=RATE)
    expected = scipy.signal.sosfiltfilt(sections, traces.astype(float), axis=0)
    found = bandpass(traces, sections)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("start", "stop"), [(0, 900), (1000, 1001), (1500, 3300), (3500, 4000)])
def test_view_is_the_chain_of_spikeinterface(start, stop):
    recording = NumpyRecording([raw_traces()], RATE)
    good = np.ones(20, bool)
    good[[3, 11]] = False
    gains, offsets = np.linspace(0.02, 0.2, 20), np.linspace(-1, 1, 20)
    chain = spre.bandpass_filter(recording, *BAND, dtype="float32")
    chain = spre.common_reference(chain, operator="median", ref_channel_ids=list(np.flatnonzero(good)))
    chain = spre.scale(chain, gain=gains, offset=offsets, dtype="float32")
    view = ConditionedRecording(recording, BAND, good, gains, offsets)
    found = view.get_traces(0, start, stop)
    np.testing.assert_allclose(found, chain.get_traces(0, start, stop), atol=1e-4)
    some = view.get_traces(0, start, stop, channel_ids=[2, 17])
    np.testing.assert_array_equal(some, found[:, [2, 17]])


def test_without_band_reference_and_scale_nothing_changes_but_the_type():
    traces = raw_traces()
    found = ConditionedRecording(NumpyRecording([traces], RATE)).get_traces()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, traces)


def test_number_of_threads_changes_no_bit():
    recording = NumpyRecording([raw_traces(num_channels=150)], RATE)
    view = ConditionedRecording(recording, BAND, np.ones(150, bool), np.full(150, 0.05))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(view.get_traces(0, 100, 3900))
    finally:
        torch.set_num_threads(threads)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 383, 384, 5001])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000, 10**6])
def test_medians_with_and_without_equal_values(count, levels):
    random = np.random.default_rng(count * levels)
    rows = random.integers(-levels, levels, (200, count)).astype(np.float32) / 7
    rows[:50] += 1e6  # a jump from one row to the next
    rows[60:70, ::2] = rows[60:70, :1]  # at rest for half of the time
    rows[70:80] = 0
    np.testing.assert_array_equal(medians(rows), np.median(rows, axis=1))


LIBRARY = """
from numba import jit


@jit(nopython=True)
def thrice(value):
    return 3 * value
"""


def test_a_librarys_loops_are_kept_for_the_next_process(tmp_path):
    (tmp_path / "library.py").write_text(LIBRARY)
    told = "print(library.thrice(2.0), sum(library.thrice.stats.cache_hits.values()))"
    use = (
        f"import library; from spikewise.core.compiling import keep_compiled; keep_compiled(library); {told}"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert outputs == ["6.0 0\n", "6.0 1\n"]


def test_a_librarys_loops_run_where_there_is_no_place_to_keep_them():
    names = {}
    exec(LIBRARY, names)
    module = types.SimpleNamespace(**names)
    keep_compiled(module)
    assert module.thrice(2.0) == 6.0
    assert module.thrice.signatures


def test_loops_are_compiled_where_there_is_no_place_to_keep_them():
    """A function of no file has none."""
    names: dict = {}
    exec("def twice(x):\n    return 2 * x", names)
    twice = compiled()(names["twice"])
    assert twice(21) == 42
    assert twice.signatures  # compiled, not run by Python


def test_reference_follows_jumps_and_equal_values():
    random = np.random.default_rng(0)
    traces = random.normal(0, 1, (3000, 24)).astype(np.float32)
    traces[1000:1500] += 1e5
    traces[2000:2200] = 3.0
    expected = traces - np.median(traces, axis=1, keepdims=True)
    traces = conditioning.reference_and_scale(
        traces, np.arange(24), np.ones(24, np.float32), np.zeros(24, np.float32)
    )
    np.testing.assert_array_equal(traces, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_seen_and_stops_nothing(bad):
    traces = np.random.default_rng(0).normal(0, 1, (50, 18)).astype(np.float32)
    traces[20, :12] = bad
    traces = conditioning.reference_and_scale(
        traces, np.arange(18), np.ones(18, np.float32), np.zeros(18, np.float32)
    )
    assert not np.isfinite(traces[20, :12]).any()
    assert np.isfinite(np.delete(traces, 20, axis=0)).all()
    rows = np.ones((2, 5), np.float32)
    rows[1, 2] = np.nan
    np.testing.assert_array_equal(medians(rows), [1, np.nan])


def test_memory_is_used_again_only_when_nobody_looks_into_it():
    recording = NumpyRecording([raw_traces(num_channels=40)], RATE)
    view = ConditionedRecording(recording, BAND, np.ones(40, bool))
    first = view.get_traces(0, 0, 1000)
    expected = first.copy()
    kept = [first[100:200, 3:5], torch.from_numpy(first[300:400].T), np.asarray(first.T)[7]]
    copies = [expected[100:200, 3:5], torch.from_numpy(expected[300:400].T), expected.T[7]]
    place = first.__array_interface__["data"][0]
    del first
    for _ in range(3):
        view.get_traces(0, 1000, 2000)
    for part, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(part, copy)
    del kept, part
    again = [view.get_traces(0, 2000, 3000) for _ in range(3)]
    assert place in [one.__array_interface__["data"][0] for one in again]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_are_seen_in_any_layout(dtype):
    traces = np.random.default_rng(0).normal(size=(900, 7)).astype(dtype)
    largest = np.full((5, 3), np.finfo(dtype).max, dtype)  # their sum is not finite
    for view in (traces, traces.T, traces[::2], traces[:, ::3], np.zeros((0, 4), dtype), largest):
        assert are_finite(view)
    for value in (np.nan, np.inf, -np.inf):
        broken = traces.copy()
        broken[777, 5] = value
        assert not are_finite(broken)
        assert not are_finite(broken.T)
