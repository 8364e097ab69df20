"""The report: exact measures of small sortings, a page that says them, clear errors for broken results."""

import base64
import collections
import gzip
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from arrays import ArrayTraces, random_network
from spikeinterface.core import NumpySorting

import spikewise
from spikewise import api
from spikewise.cli import main as cli
from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.core.errors import CheckpointError, OutputError, RecordingError, SpikewiseError
from spikewise.core.files import save_json
from spikewise.data.recordings.reader import TraceReader
from spikewise.output import colours, measures, samples
from spikewise.output.measures import spike_trains
from spikewise.output.pairs import likely_pairs, unit_similarity
from spikewise.output.report import excerpts, page_data
from spikewise.output.report import page as report
from spikewise.output.report.excerpts import choose_excerpts
from spikewise.output.report.page import Comparison, write_report
from spikewise.output.result import StoredResult, load_result
from spikewise.output.result_groups import groups_of
from spikewise.output.samples import sample_spikes
from spikewise.output.store import save_sorting, spikes_hash

RATE = 10000.0
"""Of the small cases: 10 frames are a millisecond, a stretch has 500 frames."""


def measure_units(result, readers) -> list:
    return measures.measure_units(result, readers)[0]


def group_model(num_channels, unit_ids, name="0", threshold=0.5) -> spikewise.models.checkpoint.GroupModel:
    positions = np.stack([np.zeros(num_channels), 20.0 * np.arange(num_channels)], axis=1)
    network = random_network(num_channels, len(unit_ids), 20)
    channel_ids = tuple(f"ch{index}" for index in range(num_channels))
    thresholds = np.full(len(unit_ids), threshold, dtype=np.float32)
    return spikewise.models.checkpoint.GroupModel(
        name, network, channel_ids, positions, (), tuple(unit_ids), thresholds
    )


def small_result(segments, unit_ids, lengths, *, num_channels=3, groups=None, **facts) -> StoredResult:
    """A result of given spikes: for each segment a list of (frame, unit index), in order of time."""
    frames = [np.array([frame for frame, _ in spikes], dtype=np.int64) for spikes in segments]
    units = [np.array([unit for _, unit in spikes], dtype=np.int64) for spikes in segments]
    sorting = NumpySorting.from_samples_and_labels(frames, units, RATE, np.arange(len(unit_ids)))
    sorting = sorting.rename_units(unit_ids)
    model = spikewise.Model(
        tuple(groups or [group_model(num_channels, unit_ids)]),
        RATE,
        NetworkConfig(window_ms=2.0),
        PreprocessingConfig(),
        DetectionConfig(),
        facts.pop("model_facts", {}),
    )
    provenance = {
        "spikewise_version": "1.2.3",
        "versions": {},
        "machine": {},
        "config": {"detection": {"threshold": None}},
        "preprocessing": {},
        "recording": {
            "path": None, "sampling_frequency": RATE, "num_channels": num_channels, "num_samples": lengths,
        },
        "labels": None,
        "model": {"hash": "abc"},
        "result": {"spikes_hash": spikes_hash(sorting)},
        "seconds": {"recorded": sum(lengths) / RATE, "learning": 1.0, "sorting": 2.0},
        "real_time_factor": 3.0,
        **facts,
    }  # fmt: skip
    return StoredResult(sorting, model, provenance)


class Page(HTMLParser):
    """What a page holds: rows of its tables, ids, references, texts; raises if its elements do not nest."""

    EMPTY = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: collections.Counter = collections.Counter()
        self.text = ""
        self.feed(text)
        self.close()
        if self.open:
            raise ValueError(f"never closed: {self.open}")

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "src", "xlink:href", "action", "srcset", "data"):
                self.references.append(value)
            self.references += re.findall(r"url\((.*?)\)", value or "")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"</{tag}> at {self.getpos()} closes nothing")
        self.text += " "

    def handle_data(self, data):
        if "script" in self.open:
            return
        if "style" in self.open:
            self.references += re.findall(r"url\((.*?)\)|@import (.*)", data)
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()


def read_page(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def words(page: Page) -> str:
    return " ".join(page.text.split())


# --- measures -------------------------------------------------------------------------------------------


def test_rates_violations_and_correlograms_of_a_known_train():
    # Unit a: intervals of 14 (a violation), 15 (none: 1.5 ms), 1000 frames; then a segment of its own.
    trains = [[(0, 0), (14, 0), (29, 0), (29, 1), (1029, 0)], [(5, 0)]]
    first, second, third = measure_units(small_result(trains, ["a", "b", "c"], [20000, 5000]), None)
    assert [unit.unit_id for unit in (first, second, third)] == ["a", "b", "c"]
    assert [unit.num_spikes for unit in (first, second, third)] == [5, 1, 0]
    assert first.rate_hz == pytest.approx(5 / 2.5)
    assert first.violations_percent == pytest.approx(100 / 3)
    assert second.violations_percent is None
    assert third.violations_percent is None
    # One violation in 2 * 5 * 1.5 ms, relative to a rate of 2 Hz (Hill et al. 2011).
    assert first.violations_ratio == pytest.approx(1 / (2 * 5 * 0.0015) / 2.0)
    assert second.violations_ratio is third.violations_ratio is None
    assert [unit.presence_ratio for unit in (first, second, third)] == [0.2, 0.1, 0.0]  # of ten bins
    # Lags of 1.4, 1.5 and 2.9 ms on both sides; that of 100 ms and those between segments are out of reach.
    counts = dict.fromkeys(range(100), 0) | {51: 2, 52: 1, 48: 2, 47: 1}
    assert first.correlogram.tolist() == list(counts.values())
    assert not second.correlogram.any()
    assert first.waveform is None


def test_one_threshold_given_for_all_replaces_those_of_the_model():
    spikes = [[(100, 0)]]
    assert measure_units(small_result(spikes, ["a"], [1000]), None)[0].threshold == 0.5
    given = small_result(spikes, ["a"], [1000], config={"detection": {"threshold": 0.25}})
    assert measure_units(given, None)[0].threshold == 0.25


def test_the_mean_waveform_is_the_mean_over_the_spikes_of_both_segments():
    first, second = np.zeros((2000, 3)), np.zeros((2000, 3))
    first[500, 1], first[505, 2] = -8.0, 3.0
    second[700, 1] = -4.0
    result = small_result([[(500, 0), (900, 1)], [(700, 0)]], [7, 8, 9], [2000, 2000])
    unit, silent, absent = measure_units(result, {"0": ArrayTraces(first, second, sampling_frequency=RATE)})
    assert unit.waveform.values.shape == (30, 3)
    assert unit.waveform.num_spikes == 2
    expected = np.zeros((30, 3))
    expected[unit.waveform.num_before, 1] = -6.0
    expected[unit.waveform.num_before + 5, 2] = 1.5
    assert unit.waveform.num_before == 10
    np.testing.assert_array_equal(unit.waveform.values, expected)
    assert unit.waveform.spread[10, 1] == 2.0  # of -8 and -4
    assert unit.waveform.spread[15, 2] == 1.5
    assert (unit.main_channel, unit.snr) == (1, 6.0)
    assert (silent.main_channel, silent.snr, absent.main_channel, absent.snr) == (None, 0.0, None, None)
    assert unit.waveform.main_channels(5).tolist() == [1, 2]
    assert unit.waveform.main_channels(1).tolist() == [1]
    assert silent.waveform.main_channels(5).tolist() == []
    assert absent.waveform is None


def test_each_group_is_read_from_its_own_traces():
    groups = [group_model(1, ["a"], "left"), group_model(2, ["b"], "right")]
    result = small_result([[(500, 1), (600, 0)]], ["a", "b"], [2000], groups=groups)
    left, right = np.zeros((2000, 1)), np.zeros((2000, 2))
    left[600, 0], right[500, 1] = 5.0, 7.0
    readers = {
        "left": ArrayTraces(left, sampling_frequency=RATE),
        "right": ArrayTraces(right, sampling_frequency=RATE),
    }
    a, b = measure_units(result, readers)
    assert a.waveform.peaks.tolist() == [5.0]
    assert b.waveform.peaks.tolist() == [0.0, 7.0]
    assert [unit.group.name for unit in (a, b)] == ["left", "right"]


def test_a_long_recording_is_read_only_in_part(monkeypatch):
    monkeypatch.setattr(measures, "MAX_SECONDS_READ", 4)
    second = 1000
    often = np.arange(0, 100 * second, 100)  # ten in each of a hundred seconds
    rare = np.array([31_500, 32_500, 33_500, 34_500, 35_500, 36_500])
    few = measures._choose_spikes([[often], [rare], [np.zeros(0, dtype=int)]], second)
    assert {frame // second for _, frame in few[0]} == {0, 33, 66, 99}
    assert len(few[0]) == 40
    assert few[1] == [(0, frame) for frame in rare[:5]]  # one alone of them lies in those seconds
    assert few[2] == []
    monkeypatch.setattr(measures, "MAX_WAVEFORM_SPIKES", 3)
    assert [frame for _, frame in measures._choose_spikes([[often]], second)[0]] == [0, 66_000, 99_900]
    # The same second of two segments is two seconds to read.
    monkeypatch.setattr(measures, "MAX_SECONDS_READ", 1)
    trains = [[np.arange(0, 60, 10), np.array([70])]]
    assert measures._choose_spikes(trains, second) == [[(0, 0), (0, 20), (0, 50)]]


# --- excerpts -------------------------------------------------------------------------------------------


def excerpt_case():
    """Three units, each on a channel of its own; sizes 5, 9, 7 on channels 0, 1, 2."""
    traces = np.zeros((5000, 3))
    spikes = [
        (120, 0), (140, 0), (160, 0), (180, 0), (200, 0),  # 0-50 ms: one unit, five spikes
        (1100, 0), (1200, 1),  # 100-150 ms: two units
        (2600, 0), (2700, 1), (2800, 2),  # 250-300 ms: three units
        (3600, 0), (3700, 1), (3750, 1), (3800, 2),  # 350-400 ms: three units, more spikes
        (4600, 0), (4700, 1), (4750, 1), (4800, 2),  # 450-500 ms: as many, later
    ]  # fmt: skip
    for frame, unit in spikes:
        traces[frame, unit] = -[5.0, 9.0, 7.0][unit]
    result = small_result([spikes], ["a", "b", "c"], [5000])
    readers = {"0": ArrayTraces(traces, sampling_frequency=RATE)}
    return result, measure_units(result, readers), readers, traces


@pytest.fixture
def one_excerpt(monkeypatch):
    monkeypatch.setattr(excerpts, "MAX_EXCERPTS", 1)


@pytest.mark.usefixtures("one_excerpt")
def test_the_first_excerpt_is_where_most_units_fire_then_most_spikes_then_the_first():
    result, units, readers, traces = excerpt_case()
    (found,) = choose_excerpts(result, units, readers)
    assert found.start_s == 0.35
    assert found.channel_ids == ("ch2", "ch1", "ch0")  # the highest on the probe is on top
    np.testing.assert_array_equal(found.traces, traces[3500:4000, [2, 1, 0]].astype(np.float32))
    assert found.spikes == [(100, 2, 0), (200, 1, 1), (250, 1, 1), (300, 0, 2)]
    assert found.num_spikes == 4


@pytest.mark.usefixtures("one_excerpt")
@pytest.mark.parametrize(
    ("interval", "start_s"),
    [((0.4, 0.5), 0.45), ((0.0, 0.39), 0.25), ((0.0, 0.24), 0.1), ((0.0, 0.06), 0.0), ((0.36, 0.44), None)],
)
def test_the_excerpt_lies_whole_in_the_interval(interval, start_s):
    result, units, readers, _ = excerpt_case()
    found = choose_excerpts(result, units, readers, interval)
    assert [excerpt.start_s for excerpt in found] == ([] if start_s is None else [start_s])


def test_further_excerpts_show_units_that_were_not_seen_and_all_are_in_order_of_time(monkeypatch):
    traces = np.zeros((5000, 3))
    spikes = [(100, 0), (200, 1), (1100, 0), (1200, 1), (1300, 1), (2100, 2), (3100, 0)]
    for frame, unit in spikes:
        traces[frame, unit] = -9.0
    result = small_result([spikes], ["a", "b", "c"], [5000])
    readers = {"0": ArrayTraces(traces, sampling_frequency=RATE)}
    units = measure_units(result, readers)
    for most, starts in ((1, [0.1]), (2, [0.1, 0.2]), (3, [0.0, 0.1, 0.2]), (9, [0.0, 0.1, 0.2, 0.3])):
        monkeypatch.setattr(excerpts, "MAX_EXCERPTS", most)
        assert [excerpt.start_s for excerpt in choose_excerpts(result, units, readers)] == starts


@pytest.mark.usefixtures("one_excerpt")
@pytest.mark.parametrize("apart", ["segments", "groups"])
def test_units_of_other_segments_and_groups_do_not_fire_together(apart):
    groups = [group_model(1, ["a"], "left"), group_model(1, ["b", "c"], "right")]
    segments = [[(100, 0), (600, 1), (650, 2)], [(100, 2)]]
    if apart == "groups":
        segments = [[(100, 0), (120, 1), (600, 1), (650, 2)], []]
    result = small_result(segments, ["a", "b", "c"], [1000, 1000], groups=groups)
    ones = ArrayTraces(np.ones((1000, 1)), np.ones((1000, 1)), sampling_frequency=RATE)
    readers = {"left": ones, "right": ones}
    (found,) = choose_excerpts(result, measure_units(result, readers), readers)
    assert found.start_s == 0.05
    assert found.spikes == [(100, 0, 1), (150, 0, 2)]


def test_an_excerpt_ends_within_the_recording():
    result = small_result([[(100, 0), (600, 0), (650, 1)]], ["a", "b"], [999])
    traces = np.zeros((999, 3))
    traces[[100, 600, 650]] = 9.0
    readers = {"0": ArrayTraces(traces, sampling_frequency=RATE)}
    assert [
        excerpt.start_s for excerpt in choose_excerpts(result, measure_units(result, readers), readers)
    ] == [0.0]


def test_an_excerpt_of_few_channels_keeps_the_largest_units(monkeypatch):
    monkeypatch.setattr(excerpts, "MAX_CHANNELS", 2)
    monkeypatch.setattr(excerpts, "MAX_EXCERPTS", 1)
    result, units, readers, _ = excerpt_case()
    (found,) = choose_excerpts(result, units, readers)
    assert found.channel_ids == ("ch2", "ch1")
    assert found.spikes == [(200, 1, 1), (250, 1, 1), (300, 0, 2)]
    assert found.num_spikes == 4


@pytest.mark.usefixtures("one_excerpt")
def test_the_excerpt_of_a_later_segment_and_second_group():
    groups = [group_model(1, ["a"], "left"), group_model(1, ["b", "c"], "right")]
    segments = [[(100, 0), (200, 0)], [(700, 1), (800, 2)]]
    result = small_result(segments, ["a", "b", "c"], [1250, 1000], groups=groups)
    second = np.zeros((1000, 1))
    second[700], second[800] = 4.0, 6.0
    readers = {
        "left": ArrayTraces(np.ones((1250, 1)), np.ones((1000, 1)), sampling_frequency=RATE),
        "right": ArrayTraces(np.zeros((1250, 1)), second, sampling_frequency=RATE),
    }
    (found,) = choose_excerpts(result, measure_units(result, readers), readers)
    assert found.start_s == pytest.approx(0.175)  # 1250 frames of the first segment, then 500
    np.testing.assert_array_equal(found.traces, second[500:].astype(np.float32))
    assert found.spikes == [(200, 0, 1), (300, 0, 2)]


# --- colours --------------------------------------------------------------------------------------------


def contrast(first: str, second: str) -> float:
    """Contrast of two colours by the WCAG formula."""

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_units_stand_out_from_the_light_and_the_dark_page_and_text_is_readable():
    style = report._page_file("report.css")
    lines = re.findall(r":root(?:\[data-theme=\"dark\"\])? \{ --page.*\}", style)
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", line)) for line in lines]
    assert len(themes) == 2
    assert contrast(themes[0]["page"], themes[1]["page"]) > 15
    for theme in themes:
        for background in (theme["page"], theme["panel"]):
            assert min(contrast(colour, background) for colour in colours.COLOURS) >= 3
            assert min(contrast(theme[name], background) for name in ("ink", "soft")) >= 4.5
    assert colours.colour_of(0) == colours.colour_of(len(colours.COLOURS)) != colours.colour_of(1)


# --- samples and pairs -----------------------------------------------------------------------------------


def wide_case(amplitudes, frames, shape=(0.5, 1.0, 0.5), lengths=(40000,)):
    """One unit on three channels 20 um apart; a spike is one sample of `shape` times its amplitude."""
    traces = np.zeros((sum(lengths), 3))
    for frame, amplitude in zip(frames, amplitudes, strict=True):
        traces[frame] = -amplitude * np.asarray(shape)
    result = small_result([[(frame, 0) for frame in frames]], ["a"], list(lengths))
    readers = {"0": ArrayTraces(traces, sampling_frequency=RATE)}
    return result, measure_units(result, readers), readers


def test_amplitude_depth_and_waveform_of_each_spike():
    result, units, readers = wide_case([8.0, 10.0, 12.0, 9.0], [500, 9000, 35000, 39995])
    readers["0"].segments[0][35000] = [-12.0, -12.0, 0.0]  # it has moved towards the first channel
    found = sample_spikes(result, units, readers)
    assert found.time_s.tolist() == [0.05, 0.9, 3.5]  # that at the edge of a second is passed over
    np.testing.assert_allclose(found.amplitude, [8.0, 10.0, 12.0], rtol=1e-6)
    assert found.depth_um[:2] == pytest.approx([20.0, 20.0])
    assert found.depth_um[2] == pytest.approx(10.0, abs=0.01)  # half way between the first two
    assert found.snippets[0].shape == (3, 30)
    assert found.snippets[0][:, 10].tolist() == [-8.0, -10.0, -12.0]
    assert found.num_seconds == found.num_seconds_evaluated == 4
    assert found.amplitude_cutoff(0) is None  # three spikes tell nothing


def test_a_bounded_part_of_a_long_recording_is_sampled(monkeypatch):
    monkeypatch.setattr(samples, "MAX_SECONDS_SAMPLED", 2)
    monkeypatch.setattr(samples, "MAX_SAMPLED_SPIKES", 5)
    frames = list(range(500, 39000, 500))
    result, units, readers = wide_case([9.0] * len(frames), frames)
    found = sample_spikes(result, units, readers)
    assert found.num_seconds == 2
    assert len(found.time_s) == 5
    assert {int(time) for time in found.time_s} == {0, 3}  # the first and the last second


def test_responses_above_the_threshold_are_the_spikes_that_were_found(stored):
    result = load_result(stored / "sorted")
    readers = spikewise.output.report.reporting._readers_of(
        groups_of(result, spikewise.load_recording(stored / "simulation" / "recording"))
    )
    found = sample_spikes(result, measure_units(result, readers), readers)
    centres = (np.arange(samples.RESPONSE_BINS) + 0.5) / samples.RESPONSE_BINS
    counts = result.sorting.count_num_spikes_per_unit(outputs="array")
    assert counts.sum() > 20
    assert found.responses[:, centres > 0.2].sum(axis=1).tolist() == counts.tolist()
    assert found.responses[:, centres < 0.05].sum() == 0


def test_no_second_is_read_twice(stored, monkeypatch, tmp_path):
    read = collections.Counter()
    original = TraceReader._read_block

    def counted(self, segment_index, block_index):
        read[segment_index, block_index] += 1
        return original(self, segment_index, block_index)

    monkeypatch.setattr(TraceReader, "_read_block", counted)
    recording = spikewise.load_recording(stored / "simulation" / "recording")
    spikewise.report(stored / "sorted", tmp_path / "report.html", recording=recording)
    assert sorted(read) == [(0, second) for second in range(6)]
    assert set(read.values()) == {1}


def test_no_second_of_a_long_recording_is_read_twice(tmp_path):
    """Of two minutes, some seconds are read: for mean waveforms, single spikes, responses and excerpts."""
    second, length = round(RATE), 120 * round(RATE)
    frames = list(range(400, length - 400, 900))
    traces = np.zeros((length, 3), np.float32)
    traces[frames] = [-5.0, -9.0, -4.0]
    read = collections.Counter()

    class Counted(ArrayTraces):
        def read(self, segment_index, start, stop):
            read.update(range(max(0, start) // second, -(-min(stop, length) // second)))
            return super().read(segment_index, start, stop)

    result = small_result([[(frame, 0) for frame in frames]], ["a"], [length])
    write_report(result, tmp_path / "report.html", readers={"0": Counted(traces, sampling_frequency=RATE)})
    assert len(read) == samples.MAX_SECONDS_SAMPLED
    assert set(read.values()) == {1}


def test_units_found_twice_split_and_only_alike_are_told_apart():
    generator = np.random.default_rng(0)
    length = 400_000
    frames = np.sort(generator.choice(np.arange(100, length - 100, 40), 4000, replace=False))
    first, second = frames[::2], frames[1::2]  # parts of one unit: never within 4 ms of each other
    twin = first[::2] + 1  # half of the first, a sample later
    other = np.sort(generator.choice(np.arange(100, length - 100), 2000, replace=False))
    trains = [first, second, twin, other]
    spikes = sorted((int(frame), unit) for unit, train in enumerate(trains) for frame in train)
    sorting = small_result([spikes], ["a", "b", "c", "d"], [length]).sorting
    similarity = np.full((4, 4), 0.9)
    similarity[1, 3] = similarity[3, 1] = 0.5
    pairs = likely_pairs(sorting, spike_trains(sorting), [length], similarity)
    verdicts = {(pair.first, pair.second): pair.verdict for pair in pairs}
    assert verdicts == {
        (0, 2): "duplicate", (0, 1): "split", (1, 2): "split", (0, 3): "alike", (2, 3): "alike",
    }  # fmt: skip
    assert [pair.verdict for pair in pairs] == ["duplicate", "split", "split", "alike", "alike"]
    twins = pairs[0]
    assert twins.shared == pytest.approx(1.0, abs=0.05)
    assert twins.correlogram.sum() >= len(twin)


def test_similarity_is_the_cosine_at_the_best_lag_on_common_channels():
    traces = np.zeros((6000, 3))
    spikes = [(1000, 0), (2000, 1), (3000, 2)]
    traces[1000, 0], traces[1001, 0] = -6.0, -8.0
    traces[2001, 0], traces[2002, 0] = -3.0, -4.0  # the same shape, smaller and a sample later
    traces[3000, 2] = -9.0
    result = small_result([spikes], ["a", "b", "c"], [6000])
    units = measure_units(result, {"0": ArrayTraces(traces, sampling_frequency=RATE)})
    similarity = unit_similarity(units)
    np.testing.assert_allclose(similarity, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-6)


# --- the page -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulation():
    return spikewise.simulate(
        probe="tetrode",
        num_units=2,
        duration_s=6.0,
        sampling_frequency=RATE,
        min_amplitude_uV=100.0,
        seed=3,
    )


@pytest.fixture(scope="module")
def stored(simulation, tmp_path_factory):
    """A folder with a simulation and a real result of two epochs."""
    folder = tmp_path_factory.mktemp("report")
    spikewise.save_simulation(simulation, folder / "simulation")
    api.sort(
        folder / "simulation" / "recording",
        labels=folder / "simulation" / "truth",
        label_interval=(0.0, 3.0),
        design="esort-paper",
        epochs=2,
        batch_size=32,
        threshold=0.2,
        output=folder / "sorted",
    )
    return folder


@pytest.fixture
def broken(stored, tmp_path):
    """A copy of the result, to be broken."""
    return shutil.copytree(stored / "sorted", tmp_path / "broken")


def test_the_command_writes_what_the_sorting_and_the_truth_say(stored, tmp_path, capsys):
    path = tmp_path / "sub" / "report.html"
    recording, truth = (str(stored / "simulation" / name) for name in ("recording", "truth"))
    command = ["report", str(stored / "sorted"), "--recording", recording, "--truth", truth]
    assert cli.main([*command, "--interval", "3", "6", "--output", str(path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    performance = api.evaluate(truth, stored / "sorted", interval=(3.0, 6.0))
    sorting = load_result(stored / "sorted").sorting
    assert summary == {
        "command": "report",
        "units": 2,
        "spikes": sorting.count_total_num_spikes(),
        "accuracy": performance.accuracy,
        "output": str(path),
    }
    page = read_page(path)
    header, *rows = page.rows[:3]
    cells = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    partners = {str(row.tested_unit): row for row in performance.units.itertuples()}
    assert len(rows) == 2
    assert {cell["unit"] for cell in cells} == partners.keys() - {"None"} != set()
    for cell in cells:
        score = partners[cell["unit"]]
        unit_id = next(unit for unit in sorting.unit_ids if str(unit) == cell["unit"])
        assert cell["spikes"] == str(len(sorting.get_unit_spike_train(unit_id)))
        assert [int(cell[name]) for name in ("tp", "fp", "fn")] == [score.tp, score.fp, score.fn]
        shown = [float(cell[name]) for name in ("accuracy", "precision", "recall")]
        assert shown == pytest.approx([score.accuracy, score.precision, score.recall], abs=6e-4)
        assert cell["threshold"] == "0.200"
        assert cell["channel"] in {"0", "1", "2", "3"}
        assert int(cell["labels"]) > 3
        assert float(cell["presence"]) == 1.0
    text = words(page)
    assert f"Accuracy, pooled {performance.accuracy:.3f}" in text
    assert "Recorded 6.0 s 1 segment" in text
    assert "Compared with the truth from 3 to 6 s" in text
    assert "Blue: the network was trained on spikes of this time, 0 to 3 s" in text
    provenance = json.loads((stored / "sorted" / "provenance.json").read_text())
    assert provenance["model"]["given"] is False
    assert provenance["model"]["hash"] in text
    assert provenance["result"]["spikes_hash"] in text


def page_json(path) -> dict:
    """What the scripts of a page draw from."""
    text = re.search(r'id="data">([^<]*)<', path.read_text(encoding="utf-8")).group(1)
    return json.loads(gzip.decompress(base64.b64decode(text)))


def unpack(packed) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype=np.dtype(packed["type"]).newbyteorder("<"))
    return values.reshape(packed["shape"]) * packed["step"]


def test_the_page_needs_nothing_but_itself(stored, tmp_path):
    made = api.report(stored / "sorted", tmp_path / "r.html", recording=stored / "simulation" / "recording")
    page = read_page(made.path)
    assert made.performance is None
    assert page.tags["link"] == 1
    assert page.tags["iframe"] == page.tags["img"] == 0
    assert [name for name, count in collections.Counter(page.ids).items() if count > 1] == []
    assert [r for r in page.references if not str(r).startswith("#")] == ["data:,"]  # no icon is asked for
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
    assert "Accuracy" not in words(page)
    assert made.path.stat().st_size < 3e6


def test_what_is_packed_is_what_was_measured(tmp_path):
    result, _, readers = wide_case([8.0, 10.0, 12.0], [500, 9000, 35000])
    data = page_json(write_report(result, tmp_path / "r.html", readers=readers))
    assert data["duration_s"] == 4.0
    assert data["units"][0] | {"correlogram": None} == {
        "id": "a", "group": "0", "colour": colours.COLOURS[0], "main": 1, "x": 0.0, "y": 20.0,
        "threshold": 0.5, "correlogram": None,
    }  # fmt: skip
    waveforms = data["waveforms"]
    assert waveforms["channels"] == [[1, 0, 2]]
    np.testing.assert_allclose(unpack(waveforms["mean"])[0, :, 10], [-10.0, -5.0, -5.0], atol=0.01)
    assert waveforms["num_snippets"] == [3]
    np.testing.assert_allclose(unpack(waveforms["snippets"])[0, :3, 10], [-8.0, -10.0, -12.0], atol=0.03)
    np.testing.assert_allclose(unpack(data["spikes"]["time_s"]), [0.05, 0.9, 3.5], rtol=1e-6)
    np.testing.assert_allclose(unpack(data["spikes"]["amplitude"]), [8.0, 10.0, 12.0], atol=0.01)
    assert [excerpt["start_s"] for excerpt in data["excerpts"]] == [0.05, 0.9, 3.5]
    traces = unpack(data["excerpts"][2]["traces"])
    assert traces.shape == (1, 500)
    assert traces[0].tolist() == [-12.0] + [0.0] * 499


def test_probes_that_overlap_are_drawn_side_by_side():
    groups = [group_model(3, ["a"], "left"), group_model(2, ["b"], "right")]
    left, right = page_data.drawn_positions(groups).values()
    assert left.tolist() == [[0, 0], [0, 20], [0, 40]]
    assert right.tolist() == [[100, 0], [100, 20]]


def test_without_recording_the_page_says_what_is_missing(stored, tmp_path):
    path = api.report(stored / "sorted", tmp_path / "r.html").path
    page = read_page(path)
    assert "made without the recording" in words(page)
    assert not {"channel", "SNR"} & set(page.rows[0])
    assert "Mean waveform" not in page.text
    data = page_json(path)
    assert data["spikes"] is data["waveforms"] is data["similarity"] is None
    assert (
        len(unpack(data["trains"]["time_s"]))
        == load_result(stored / "sorted").sorting.count_total_num_spikes()
    )


def test_a_result_in_memory_gives_the_same_page_as_its_folder(stored, tmp_path):
    held = load_result(stored / "sorted")
    result = api.SortingResult(held.sorting, held.model, held.provenance, stored / "sorted")
    first = api.report(result, tmp_path / "a.html").path.read_text(encoding="utf-8")
    second = api.report(stored / "sorted", tmp_path / "b.html").path.read_text(encoding="utf-8")
    assert first == second


def test_traces_are_drawn_from_the_time_that_was_compared(tmp_path):
    result, _, readers, _ = excerpt_case()
    path = write_report(
        result, tmp_path / "r.html", readers=readers, comparison=Comparison(interval_s=(0.0, 0.39))
    )
    assert [excerpt["start_s"] for excerpt in page_json(path)["excerpts"]] == [0.0, 0.1, 0.25]
    assert [row[:4] for row in read_page(path).rows[:4]] == [
        ["unit", "channel", "depth (µm)", "SNR"],
        ["a", "ch0", "0", "5.0"],
        ["b", "ch1", "20", "9.0"],
        ["c", "ch2", "40", "7.0"],
    ]
    with pytest.raises(OutputError, match="exists already"):
        write_report(result, path)


def test_confusion_and_size_of_the_true_units_are_told(tmp_path):
    result, _, readers = wide_case([8.0, 10.0, 12.0], [500, 9000, 35000])
    frames, labels = [500, 9001, 20000, 35000], [3, 3, 4, 4]
    truth = NumpySorting.from_samples_and_labels([frames], [labels], RATE, [3, 4])
    in_memory = api.SortingResult(result.sorting, result.model, result.provenance)
    performance = api.evaluate(truth, result.sorting)
    path = write_report(
        result, tmp_path / "r.html", readers=readers, comparison=Comparison(truth, performance)
    )
    told = page_json(path)["truth"]
    assert told["common"] == [[2], [1]]
    assert told["tested"] == ["a"]
    assert [unit["truth_unit"] for unit in told["units"]] == ["3", "4"]
    assert [unit["snr"] for unit in told["units"]] == pytest.approx([5.0, 6.0])  # half of the spikes are off
    assert in_memory.folder is None


def test_units_and_true_units_without_a_partner_are_told(tmp_path):
    result = small_result([[(100, 0), (900, 0), (400, 1)]], ["x", "y"], [5000])
    frames, units = [100, 900, 2000, 3000, 4800], [0, 0, 1, 1, 2]
    truth = NumpySorting.from_samples_and_labels([frames], [units], RATE, [0, 1, 2])
    in_memory = api.SortingResult(result.sorting, result.model, result.provenance)
    text = words(read_page(api.report(in_memory, tmp_path / "r.html", truth=truth, interval=(0, 0.45)).path))
    assert "Units without a true partner: y; with their 1 spike counted as false, accuracy is 0.400" in text
    assert "True units without a partner, counted as missed: 1 (2 spikes)." in text
    assert "matches no true unit" in text


def test_of_many_units_without_a_partner_twelve_are_named_and_the_others_counted(tmp_path):
    names = [f"u{number}" for number in range(15)]
    result = small_result([[(100 * unit + 50, unit) for unit in range(15)]], names, [10000])
    truth = NumpySorting.from_unit_dict({"far": np.array([9000])}, RATE)
    performance = api.evaluate(truth, result.sorting)
    text = words(
        read_page(write_report(result, tmp_path / "r.html", comparison=Comparison(None, performance)))
    )
    assert "Units without a true partner: u0, " in text
    assert "u11 and 3 more; with their 15 spikes" in text
    assert "counted as missed: far (1 spike)." in text


def test_the_interval_cuts_a_recording_of_several_segments(tmp_path):
    result = small_result([[(100, 0)], [(100, 0), (900, 0)]], ["x"], [5000, 5000])
    truth = NumpySorting.from_samples_and_labels([[3000], [100, 2000]], [[0], [0, 0]], RATE, [0])
    in_memory = api.SortingResult(result.sorting, result.model, result.provenance)
    made = api.report(in_memory, tmp_path / "r.html", truth=truth, interval=(0.5, 0.55), match_score=0.1)
    assert made.performance.units.iloc[0][["tp", "fp", "fn"]].tolist() == [1, 0, 0]


def test_names_from_outside_cannot_write_the_page(tmp_path):
    ids = ["<script>alert(1)</script>", "$\\frac{1}{$", 'x" onload="alert(1)']
    traces = np.zeros((5000, 3))
    traces[[100, 200, 300], [0, 1, 2]] = 9.0
    result = small_result([[(100, 0), (200, 1), (300, 2)]], ids, [5000])
    result.provenance["recording"]["path"] = "<b onclick=x>"
    readers = {"0": ArrayTraces(traces, sampling_frequency=RATE)}
    page = read_page(write_report(result, tmp_path / "r.html", readers=readers))
    assert page.tags["script"] == 3  # the data, the library, the page's own
    assert page.tags["b"] == 0
    assert [row[0] for row in page.rows[1:4]] == ids


def test_a_result_without_spikes_has_a_page(tmp_path):
    result = small_result([[]], ["a"], [5000])
    readers = {"0": ArrayTraces(np.zeros((5000, 3)), sampling_frequency=RATE)}
    text = words(read_page(write_report(result, tmp_path / "r.html", readers=readers)))
    assert "No traces are drawn: no spike was found" in text
    assert "Units 1 0 with spikes" in text
    assert page_json(tmp_path / "r.html")["excerpts"] == []


# --- what cannot be used --------------------------------------------------------------------------------


def test_a_report_is_never_overwritten_unasked(stored, tmp_path):
    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        api.report(stored / "sorted", path)
    assert path.read_text() == "mine"
    with pytest.raises(OutputError, match="is a folder"):
        api.report(stored / "sorted", tmp_path, overwrite=True)
    api.report(stored / "sorted", path, overwrite=True)
    assert "Sorting report" in path.read_text(encoding="utf-8")
    assert [item.name for item in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("name", ["sorting", "model.safetensors", "provenance.json"])
def test_a_missing_part_of_a_result_is_named(broken, name, capsys):
    place = broken / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert cli.main(["report", str(broken), "--output", str(broken / "r.html")]) == 2
    message = capsys.readouterr().err
    assert f"has no {name}" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "it holds a list"),
        ("{}", "spikewise_version is missing"),
        (b"\xff\xfe", "decode"),
    ],
)
def test_a_damaged_provenance_is_told(broken, text, reason, capsys):
    (broken / "provenance.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(["report", str(broken), "--output", str(broken / "r.html")]) == 2
    message = capsys.readouterr().err
    assert "provenance.json is damaged" in message
    assert reason in message


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("seconds.sorting", "fast", "seconds.sorting"),
        ("seconds.recorded", float("nan"), "seconds.recorded"),
        ("real_time_factor", True, "real_time_factor"),
        ("recording", None, "recording.sampling_frequency"),
        ("recording.num_samples", [], "recording.num_samples"),
        ("recording.num_samples", [-5], "recording.num_samples"),
        ("recording.num_samples", [10, 10], "number of segments"),
        ("recording.sampling_frequency", 20000.0, "sampling frequency"),
        ("labels", "none", "labels is 'none'"),
        ("labels", {"interval_s": [3, 0]}, "labels is"),
        ("labels", {"interval_s": [3]}, "labels is"),
        ("config.detection", [], "config.detection"),
        ("config.detection.threshold", "low", "config.detection.threshold is 'low'"),
        ("result.spikes_hash", "0" * 64, "spikes are not those"),
    ],
)
def test_facts_that_cannot_be_are_told(broken, place, value, told):
    facts = json.loads((broken / "provenance.json").read_text())
    *parents, last = place.split(".")
    home = facts
    for name in parents:
        home = home[name]
    home[last] = value
    save_json(facts, broken / "provenance.json")
    with pytest.raises(OutputError, match=re.escape(told)):
        load_result(broken)


def test_parts_of_two_results_are_told_apart(broken):
    sorting = load_result(broken).sorting
    shutil.rmtree(broken / "sorting")
    save_sorting(sorting.rename_units([str(unit) + "x" for unit in sorting.unit_ids]), broken)
    with pytest.raises(OutputError, match="units of the sorting are not those of the model"):
        load_result(broken)


def test_a_damaged_model_or_sorting_is_told(broken):
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        load_result(broken)
    (broken / "sorting" / "spikes.npy").write_bytes(b"nonsense")
    with pytest.raises(SpikewiseError, match="sorting"):
        load_result(broken)


@pytest.mark.parametrize("name", ["absent", "file", "empty"])
def test_what_is_no_result_is_told(tmp_path, name, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / name), "--output", str(tmp_path / "r.html")]) == 2
    assert "the output folder of `spikewise sort`" in capsys.readouterr().err.replace("The", "the")


def test_another_recording_is_refused(stored, tmp_path):
    other = spikewise.simulate(probe="tetrode", num_units=2, duration_s=5.0, sampling_frequency=RATE)
    with pytest.raises(RecordingError, match="segments of"):
        api.report(stored / "sorted", tmp_path / "r.html", recording=other.recording)
    wider = spikewise.simulate(probe="linear-16", num_units=2, duration_s=6.0, sampling_frequency=RATE)
    with pytest.raises(CheckpointError, match="channels"):
        api.report(stored / "sorted", tmp_path / "r.html", recording=wider.recording)
    assert not (tmp_path / "r.html").exists()
