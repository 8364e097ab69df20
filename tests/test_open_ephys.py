"""The ZMQ Interface and the Network Events of the Open Ephys GUI, and rates in LSL."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_servers import channel_message, free_port, network_events, zmq_interface
from streams import RATE, live_model, noise, offline, pairs

import spikewise
from spikewise.core.errors import SettingError
from spikewise.jobs.live.lsl_rates import LslRatesSink
from spikewise.jobs.live.network_events import NetworkEventsSink
from spikewise.jobs.live.openephys import read_channel_message
from spikewise.jobs.live.registry import open_sinks
from spikewise.jobs.live.sinks import Emission, units_of
from spikewise.jobs.live.source import Chunk, StreamError, StreamFacts
from spikewise.models.channel_noise import ChannelNoise
from spikewise.output.result import load_result

NUM, BLOCK = 24_000, 600
FIRST = 3 * BLOCK
"""Samples that are sent before the channels are known."""


@pytest.fixture(scope="module")
def model():
    model = live_model()
    noise_of = ChannelNoise(model.groups[0].noise.levels, np.ones(6))
    return replace(model, groups=(replace(model.groups[0], noise=noise_of),))


@pytest.fixture(scope="module")
def samples():
    return noise(NUM, 6)


def found_in(folder):
    return pairs(load_result(folder).sorting.to_spike_vector())


class ListSource:
    """Chunks from a list."""

    def __init__(self, chunks):
        self.given = chunks

    def open(self):
        return StreamFacts(6, RATE, "int16")

    def chunks(self):
        yield from self.given

    def close(self):
        pass


def test_the_zmq_interface_is_sorted_as_a_file_and_lost_messages_are_gaps(model, samples, tmp_path):
    in_uV = samples.astype(np.float32)
    head = [(number, in_uV[:BLOCK]) for number in range(1000, 1000 + FIRST, BLOCK)]
    blocks = head + [(1000 + FIRST + at, in_uV[at : at + BLOCK]) for at in range(0, NUM, BLOCK)]
    lost = {(1000 + FIRST + 9000, 3)}  # one channel of one block
    port, lives = free_port(), []
    sender = zmq_interface(port, blocks, RATE, lost, lives)
    source = f"openephys://127.0.0.1:{port}"
    result = spikewise.stream(source, model=model, sinks=tmp_path / "out", stream="probe", wait_s=1.0)
    sender.finish()
    before = (result.num_samples - NUM) // BLOCK  # blocks of the head that came after the channels were known
    assert 0 <= before <= 3
    assert result.num_samples == NUM + before * BLOCK
    assert result.gaps == [(before * BLOCK + 9000, BLOCK)]
    whole = np.concatenate([in_uV[:BLOCK]] * before + [in_uV])
    cut = before * BLOCK + 9000
    first, second = offline(model, whole[:cut], whole[cut + BLOCK :])
    assert found_in(tmp_path / "out") == first + [(at + cut + BLOCK, unit) for at, unit in second]
    assert lives
    assert lives[0]["type"] == "heartbeat"


def test_nobody_sends(model, tmp_path, monkeypatch):
    monkeypatch.setattr("spikewise.jobs.live.openephys.OPEN_S", 0.3)
    with pytest.raises(StreamError, match="Start the acquisition"):
        spikewise.stream(f"openephys://127.0.0.1:{free_port()}", model=model, sinks=tmp_path / "out")


def test_a_message_of_one_channel():
    message = read_channel_message(channel_message(np.arange(5.0), 3, 77, 30000.0))
    assert (message.channel, message.number, message.name, message.stream) == (3, 77, "CH4", "probe")
    assert message.samples.tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_messages_are_refused(data):
    frames = channel_message(np.arange(5.0), 3, 77, 30000.0)
    which = data.draw(st.integers(0, 2))
    changed = bytearray(frames[which])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    frames[which] = bytes(changed[: data.draw(st.integers(0, len(changed)))])
    try:
        message = read_channel_message(frames)
    except StreamError:
        return
    assert 0 < len(message.samples) <= 5
    assert 0 < message.sampling_frequency <= 1e7


@pytest.mark.parametrize(
    "content",
    [
        {"num_samples": 2**40},
        {"channel_num": -1},
        {"channel_num": 10**9},
        {"sample_rate": "nan"},
        {"sample_num": -5},
    ],
)
def test_claims_that_are_too_large_are_refused(content):
    with pytest.raises(StreamError, match="ZMQ Interface"):
        read_channel_message(channel_message(np.arange(5.0), 3, 77, 30000.0, **content))


def test_events_of_chosen_units_reach_the_plugin(model, samples):
    (expected,) = offline(model, samples[:6000])
    port, received = free_port(), []
    plugin = network_events(port, received)
    one, two = model.unit_ids[1], model.unit_ids[3]
    chunks = [Chunk(samples[at : at + 300]) for at in range(0, 6000, 300)]
    name = f"openephys-events://127.0.0.1:{port}?{one}=4&{two}=9"
    spikewise.stream(ListSource(chunks), model=model, sinks=name)
    plugin.finish()
    lines = [{1: 4, 3: 9}[unit] for _, unit in expected if unit in (1, 3)]
    assert len(lines) > 10
    assert received == [f"TTL Line={line} State={state}" for line in lines for state in (1, 0)]


def test_a_plugin_that_does_not_answer_stops_nothing(model, samples, monkeypatch, caplog):
    monkeypatch.setattr("spikewise.jobs.live.network_events._ANSWER_MS", 50)
    name = f"openephys-events://127.0.0.1:{free_port()}?{model.unit_ids[1]}=4"
    sink = NetworkEventsSink(name, units_of(model, 60))
    spikes = np.zeros(3, [("sample_index", "i8"), ("unit_index", "i8"), ("response", "f4")])
    spikes["unit_index"] = 1
    started = time.perf_counter()
    sink.send(Emission(spikes, 100))
    assert time.perf_counter() - started < 0.05
    sink.close(None)
    assert "no answer comes from" in caplog.text


@pytest.mark.parametrize("query", ["", "?nobody=1", "?0-1=300", "?0-1=x"])
def test_events_that_cannot_be_sent_are_refused(model, query):
    with pytest.raises(SettingError, match="UNIT=LINE"):
        open_sinks([f"openephys-events://127.0.0.1:5556{query}"], units_of(model, 60), False)


def test_rates_are_an_lsl_stream(model, samples):
    pylsl = pytest.importorskip("pylsl")
    (expected,) = offline(model, samples[:9000])
    name = f"rates-{free_port()}"
    units = units_of(model, 70)
    sink = LslRatesSink(f"lsl-rates://{name}?bin_ms=10", units)
    found = pylsl.resolve_byprop("name", name, timeout=20)
    assert found[0].channel_count() == len(model.unit_ids)
    assert found[0].nominal_srate() == 100.0
    inlet = pylsl.StreamInlet(found[0])
    inlet.open_stream(timeout=10)
    sorter = spikewise.StreamSorter(model)
    time.sleep(0.3)
    for at in range(0, 9000, 30):
        spikes = sorter.push(samples[at : at + 30])
        if len(spikes):
            sink.send(Emission(spikes, sorter.num_samples))
        sink.advance(sorter.num_samples)
    rest = sorter.flush()
    if len(rest):
        sink.send(Emission(rest, 9000))
    rates = []
    reader = threading.Thread(target=lambda: rates.extend(inlet.pull_sample(timeout=5)[0] for _ in range(30)))
    reader.start()
    sink.close({"recording": {"num_samples": [9000]}})
    reader.join(20)
    counts = np.zeros((30, len(model.unit_ids)))
    for sample, unit in expected:
        counts[sample // 300, unit] += 1
    np.testing.assert_allclose(rates, counts * 100)


@pytest.mark.parametrize("query", ["bin_ms=0.1", "bin_ms=x", "bins=3"])
def test_bins_that_make_no_sense_are_refused(model, query):
    pytest.importorskip("pylsl")
    with pytest.raises(SettingError, match="bin_ms"):
        LslRatesSink(f"lsl-rates://rates?{query}", units_of(model, 60))
