"""Sources and sinks of live streams, each with the real protocol on the loopback address."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import spikeinterface
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_servers import (
    Sender,
    falcon_message,
    falcon_sender,
    free_port,
    intan_server,
    listener,
    spikeglx_server,
)
from streams import RATE, SILENT, explained, live_model, noise, offline, pairs, recording_of, saved

import spikewise
from spikewise.cli import main as cli
from spikewise.core.errors import CheckpointError, SettingError
from spikewise.data.labels.label_files import load_labels
from spikewise.data.recordings.preprocessing import preprocess_recording
from spikewise.jobs.live.falcon import read_message
from spikewise.jobs.live.keeping import KeptSource
from spikewise.jobs.live.latency import Delays
from spikewise.jobs.live.source import Chunk, StreamError, StreamFacts
from spikewise.models.channel_noise import ChannelNoise
from spikewise.output.result import load_result

NUM = 45_000


@pytest.fixture(scope="module")
def model():
    model = explained(live_model())
    noise_of = ChannelNoise(model.groups[0].noise.levels, np.ones(6))
    return replace(model, groups=(replace(model.groups[0], noise=noise_of),))


@pytest.fixture(scope="module")
def samples():
    return noise(NUM, 6)


@pytest.fixture(scope="module")
def expected(model, samples):
    (spikes,) = offline(model, samples)
    assert len(spikes) > 200
    return spikes


def found_in(folder) -> list[tuple[int, int]]:
    return pairs(load_result(folder).sorting.to_spike_vector())


class ListSource:
    """Chunks from a list."""

    def __init__(self, chunks, rate=RATE, num_channels=6, dtype="int16"):
        self.facts, self.given, self.is_closed = StreamFacts(num_channels, rate, dtype), chunks, False

    def open(self):
        return self.facts

    def chunks(self):
        yield from self.given

    def close(self):
        self.is_closed = True


def test_a_replayed_file_becomes_an_ordinary_result(model, samples, expected, tmp_path):
    recording = recording_of(model, samples)
    folder = tmp_path / "result"
    result = spikewise.stream(recording, model=model, sinks=folder, speed="fast", block_ms=3.3)
    assert found_in(folder) == expected
    assert result.num_spikes == len(expected)
    assert result.num_samples == NUM
    stored = load_result(folder)
    assert stored.sorting.unit_ids.tolist() == model.unit_ids
    assert stored.provenance["seconds"]["recorded"] == 1.5
    assert stored.provenance["damage"]["num_stretches"] == 0
    labels = load_labels(folder / "spikes.csv", recording)
    assert labels.count_total_num_spikes() == len(expected)
    report = spikewise.report(folder, recording=recording, output=tmp_path / "report.html")
    assert report.path.stat().st_size > 10_000


def test_a_file_at_its_own_rate_takes_its_own_time(model, samples, tmp_path):
    recording = recording_of(model, samples[:15_000])
    begin = time.perf_counter()
    result = spikewise.stream(recording, model=model, sinks=tmp_path / "result")
    assert time.perf_counter() - begin >= 0.5
    delay, from_peak = result.delays.summary_ms(), result.peak_delays.summary_ms()
    assert 0 < delay["p50_ms"] <= delay["p99_ms"] <= delay["max_ms"]
    assert from_peak["p50_ms"] > delay["p50_ms"] + 1.8  # the look-ahead
    assert 0 < result.summary()["busy_share"] < 1


def test_segments_are_stretches_of_one_stream(model, samples, tmp_path):
    parts = samples[:20_000], samples[20_000:]
    spikewise.stream(recording_of(model, *parts), model=model, sinks=tmp_path / "result", speed="fast")
    first, second = offline(model, *parts)
    assert found_in(tmp_path / "result") == first + [(sample + 20_000, unit) for sample, unit in second]


def test_the_command_sorts_standard_input(model, samples, expected, tmp_path, data_env):
    command = [sys.executable, "-m", "spikewise", "stream", "-", "--model", str(saved(model, tmp_path))]
    command += ["--sink", "-", "--sink", str(tmp_path / "result"), "--json"]
    content = samples.tobytes() + b"x"  # a part of a sample at the end
    finished = subprocess.run(command, input=content, capture_output=True, timeout=120, env=data_env)
    assert finished.returncode == 0, finished.stderr
    assert found_in(tmp_path / "result") == expected
    *lines, summary = map(json.loads, finished.stdout.splitlines())
    assert summary["num_spikes"] == len(expected)
    ids = [(spike["sample_index"], spike["unit_id"]) for line in lines for spike in line["spikes"]]
    assert ids == [(sample, model.unit_ids[unit]) for sample, unit in expected]
    assert {line["sampling_frequency"] for line in lines} == {RATE}


@pytest.fixture
def data_env():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_zmq_and_udp_sinks_send_json(model, samples, expected):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(5)
    ports = free_port(), receiver.getsockname()[1]
    subscriber = zmq.Context.instance().socket(zmq.SUB)
    subscriber.connect(f"tcp://127.0.0.1:{ports[0]}")
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")

    def chunks():
        time.sleep(0.5)  # until the subscriber is connected
        for first in range(0, NUM, 3000):
            yield Chunk(samples[first : first + 3000])
            time.sleep(0.001)

    sinks = [f"zmq://127.0.0.1:{ports[0]}", f"udp://127.0.0.1:{ports[1]}"]
    spikewise.stream(ListSource(chunks()), model=model, sinks=sinks)
    wanted = [(sample, model.unit_ids[unit]) for sample, unit in expected]
    for receive in (subscriber.recv, lambda: receiver.recv(2**16)):
        found = []
        while len(found) < len(wanted):
            message = json.loads(receive())
            assert message["number"] == len(found)
            found += [(spike["sample_index"], spike["unit_id"]) for spike in message["spikes"]]
        assert found == wanted
    subscriber.close()
    receiver.close()


def test_a_falcon_output_is_sorted_as_a_file_and_lost_messages_are_gaps(model, samples, expected, tmp_path):
    in_uV = samples.astype(np.float32)
    blocks = [(1000 + first, in_uV[first : first + 90]) for first in range(0, NUM, 90)]
    port = free_port()
    sender = falcon_sender(port, blocks, RATE)
    source, options = f"falcon://127.0.0.1:{port}", {"stream": "probe", "wait_s": 1.0}
    spikewise.stream(source, model=model, sinks=tmp_path / "whole", **options)
    sender.finish()
    assert found_in(tmp_path / "whole") == expected

    lost = [block for index, block in enumerate(blocks) if index not in (200, 201, 202)]
    sender = falcon_sender(port, lost, RATE)
    result = spikewise.stream(source, model=model, sinks=tmp_path / "lost", **options)
    sender.finish()
    assert result.gaps == [(18_000, 270)]
    first, second = offline(model, samples[:18_000], samples[18_270:])
    assert found_in(tmp_path / "lost") == first + [(sample + 18_270, unit) for sample, unit in second]
    damage = load_result(tmp_path / "lost").provenance["damage"]
    assert [(one["start_s"], one["stop_s"]) for one in damage["stretches"]] == [(0.6, 0.609)]


def test_a_source_that_is_killed_and_started_again_leaves_a_gap(model, samples, tmp_path):
    in_uV, port = samples.astype(np.float32), free_port()

    def run():
        for begin in (0, 20_000):  # each time its numbers begin anew
            part = in_uV[begin : begin + 20_000]
            falcon_sender(port, [(at, part[at : at + 200]) for at in range(0, 20_000, 200)], RATE).finish()
            time.sleep(0.3)

    sender = Sender(run)
    result = spikewise.stream(
        f"falcon://127.0.0.1:{port}", model=model, sinks=tmp_path / "result", stream="probe", wait_s=2.0
    )
    sender.finish()
    ((start, length),) = result.gaps
    assert start == 20_000
    assert 0.2 < length / RATE < 2.0
    first, second = offline(model, samples[:20_000], samples[20_000:40_000])
    moved = [(sample + start + length, unit) for sample, unit in second]
    assert found_in(tmp_path / "result") == first + moved


def test_an_lsl_stream_is_sorted_and_its_spikes_come_as_markers(model, samples, expected, tmp_path):
    pylsl = pytest.importorskip("pylsl")
    name = f"spikewise-test-{os.getpid()}"
    info = pylsl.StreamInfo(name, "ephys", 6, RATE, "int16", name)
    outlet = pylsl.StreamOutlet(info, chunk_size=0, max_buffered=60)
    markers = []

    def run():
        assert outlet.wait_for_consumers(20)
        found = pylsl.resolve_byprop("name", f"{name}-spikes", timeout=20)
        inlet = pylsl.StreamInlet(found[0])
        inlet.open_stream(timeout=5)
        begin = pylsl.local_clock()
        for first in range(0, NUM, 300):
            part = samples[first : first + 300]
            outlet.push_chunk(part, begin + (first + len(part) - 1) / RATE)
            time.sleep(0.001)
        while len(markers) < len(expected):
            marker, stamp = inlet.pull_sample(timeout=5)
            if marker is None:
                break
            markers.append((marker[0], stamp))

    sender = Sender(run)
    sinks = [f"lsl://{name}-spikes", str(tmp_path / "result")]
    result = spikewise.stream(f"lsl://{name}", model=model, sinks=sinks, wait_s=1.5)
    sender.finish()
    assert result.num_missing == 0
    assert found_in(tmp_path / "result") == expected
    assert [marker for marker, _ in markers] == [model.unit_ids[unit] for _, unit in expected]


def with_names(model, names):
    group = replace(model.groups[0], channel_ids=tuple(names), silenced_channel_ids=(names[SILENT],))
    return replace(model, groups=(group,))


def test_intan_rhx_is_sorted_in_the_order_of_the_model(model, samples, tmp_path):
    whole = len(samples) // 128 * 128
    names = ["A-003", "A-001", "B-000", "A-010", "A-000", "C-127"]  # of the columns of the model
    group = replace(model.groups[0], noise=ChannelNoise(model.groups[0].noise.levels, np.full(6, 0.195)))
    intan = with_names(replace(model, groups=(group,)), names)
    expected = offline(intan, samples[:whole])[0]
    port = free_port()
    server = intan_server(port, names, samples[:whole], RATE)
    source = f"intan://127.0.0.1:{port}"
    spikewise.stream(source, model=intan, sinks=tmp_path / "result", wait_s=0.5)
    server.finish()
    assert found_in(tmp_path / "result") == expected
    with pytest.raises(StreamError, match="named as in RHX"):
        spikewise.stream(source, model=model, sinks=tmp_path / "other")


def test_intan_rhx_that_is_started_again_is_connected_again(model, samples, tmp_path):
    names, port = [f"A-{channel:03}" for channel in range(6)], free_port()
    intan = with_names(model, names)

    first = intan_server(port, names, samples[: 128 * 100], RATE)

    def run():
        first.finish()
        time.sleep(0.2)
        intan_server(port, names, samples[128 * 100 : 128 * 200], RATE).finish()

    sender = Sender(run)
    source = f"intan://127.0.0.1:{port}"
    result = spikewise.stream(source, model=intan, sinks=tmp_path / "result", wait_s=2.0)
    sender.finish()
    ((start, length),) = result.gaps
    assert start == 12_800
    assert result.num_samples == 25_600 + length


def test_spikeglx_is_fetched_and_a_broken_connection_loses_nothing(model, samples, expected, tmp_path):
    port = free_port()
    server = spikeglx_server(port, np.column_stack([samples, samples[:, 0]]), RATE)
    source = f"spikeglx://127.0.0.1:{port}/1"
    result = spikewise.stream(source, model=model, sinks=tmp_path / "result", wait_s=1.0)
    server.finish()
    assert result.num_gaps == 0
    assert found_in(tmp_path / "result") == expected


@pytest.mark.parametrize("kind", ["intan", "spikeglx"])
def test_servers_that_speak_nonsense_are_refused(model, tmp_path, kind):
    port, random = free_port(), np.random.default_rng(0)
    names = [f"A-{channel:03}" for channel in range(6)]
    for _ in range(5):
        server = listener(port)

        def run(server=server):
            connection, _ = server.accept()
            connection.settimeout(1)
            with connection, contextlib.suppress(OSError):
                connection.recv(100)
                connection.sendall(random.bytes(200) + b"\nReturn: x\n")
                connection.recv(100)
            server.close()

        sender = Sender(run)
        with pytest.raises(StreamError):
            spikewise.stream(
                f"{kind}://127.0.0.1:{port}", model=with_names(model, names), sinks=tmp_path / "a", wait_s=0.5
            )
        sender.finish()
    with pytest.raises(StreamError, match="cannot be reached"):
        spikewise.stream(f"{kind}://127.0.0.1:{port}", model=with_names(model, names), sinks=tmp_path / "a")


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8), cut=st.integers(0, 600)
)
def test_damaged_falcon_messages_are_refused(changes, cut):
    content = bytearray(falcon_message(noise(20, 6), 5, 30_000))
    for place, value in changes:
        content[min(place, len(content) - 1)] = value
    try:
        message = read_message(bytes(content[: len(content) - cut]))
    except StreamError:
        return
    assert message.samples.dtype == np.float32
    assert message.samples.size <= len(content) / 4


def test_a_stream_that_does_not_fit_is_refused_with_advice(model, samples, tmp_path):
    with pytest.raises(StreamError, match="has 4 channels"):
        spikewise.stream(ListSource([], num_channels=4), model=model, sinks=tmp_path / "a")
    with pytest.raises(StreamError, match="sampled at 20000 Hz"):
        spikewise.stream(ListSource([], rate=20_000.0), model=model, sinks=tmp_path / "a")
    source = ListSource([])
    with pytest.raises(SettingError, match="no known kind"):
        spikewise.stream(source, model=model, sinks="ftp://there")
    assert source.is_closed
    with pytest.raises(SettingError, match="no port"):
        spikewise.stream(source, model=model, sinks="udp://127.0.0.1")
    with pytest.raises(SettingError, match="no known kind"):
        spikewise.stream("ftp://there", model=model, sinks=tmp_path / "a")
    zero_phase = replace(model, preprocessing_config=replace(model.preprocessing_config, filter="zero-phase"))
    with pytest.raises(CheckpointError, match="--filter live"):
        spikewise.stream(source, model=zero_phase, sinks=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_command_reports_what_cannot_be_used(model, tmp_path, capsys):
    file = saved(model, tmp_path)
    arguments = ["stream", str(tmp_path / "missing"), "--model", str(file), "--sink", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "does not exist" in capsys.readouterr().err


class Paced(ListSource):
    """Chunks that come faster than in reality, but not at once."""

    def chunks(self):
        for chunk in self.given:
            yield chunk
            time.sleep(0.002)


def test_a_kept_stream_is_caught_up_with_and_then_read_directly():
    samples = np.arange(2 * 400 * 100).reshape(-1, 2).astype("int32")
    chunks = [
        Chunk(samples[first : first + 100], 7 if first == 5000 else None) for first in range(0, 40_000, 100)
    ]
    source = Paced(chunks, num_channels=2, dtype="int32")
    kept = KeptSource(source, source.open(), 20_000.0)
    first = kept.wait_for(0.5, 5.0)  # which takes 0.2 s of the 0.8 s of all chunks
    assert np.array_equal(first.get_traces(), samples[:10_000])
    found, gaps, places = [], [], []
    for chunk in kept.chunks():
        if chunk.gap is not None:
            gaps.append((sum(map(len, found)), chunk.gap))
        found.append(chunk.samples)
        places.append(kept._file.exists())
    assert np.array_equal(np.concatenate(found), samples)
    assert gaps == [(5000, 7)]
    assert places[0]
    assert not places[-1]
    kept.close()
    assert source.is_closed


@pytest.mark.slow
def test_units_are_learnt_from_a_stream_and_nothing_is_lost(tetrode, tmp_path):
    traces = tetrode.traces
    half = len(traces) // 2
    chunks = [Chunk(traces[first : first + 300]) for first in range(0, half, 300)]
    chunks += [
        Chunk(traces[first : first + 300], None if first > half else 500)
        for first in range(half, 240_000, 300)
    ]
    source = Paced(chunks, num_channels=4, dtype=str(traces.dtype))
    options = {"learn_s": 7.0, "probe": "tetrode", "wait_s": 5.0}
    result = spikewise.stream(source, sinks=tmp_path / "result", **options)
    assert result.gaps == [(half, 500)]
    assert result.num_samples == len(traces) + 500
    assert source.is_closed
    stored = load_result(tmp_path / "result")
    assert len(stored.model.unit_ids) >= 2
    assert stored.model.preprocessing_config.filter == "live"
    recording = spikeinterface.load(tetrode.recording)
    parts = [recording.frame_slice(0, half), recording.frame_slice(half, len(traces))]
    first, second = (
        pairs(spikewise.sort(part, model=stored.model, report=False).sorting.to_spike_vector())
        for part in parts
    )
    assert found_in(tmp_path / "result") == first + [(sample + half + 500, unit) for sample, unit in second]


def test_learning_from_a_stream_needs_enough_of_it(samples, tmp_path):
    source = ListSource([Chunk(samples[:3000, :4])], num_channels=4)
    with pytest.raises(StreamError, match=r"0\.1 s of samples"):
        spikewise.stream(source, sinks=tmp_path / "a", learn_s=7.0, probe="tetrode")
    assert source.is_closed
    with pytest.raises(SettingError, match="with --probe"):
        spikewise.stream(source, sinks=tmp_path / "a", learn_s=7.0)
    with pytest.raises(SettingError, match="Neither a model nor learn_s"):
        spikewise.stream(source, sinks=tmp_path / "a")


def test_samples_in_another_unit_are_noticed(model, samples, tmp_path, caplog):
    whole = [Chunk(samples[first : first + 900]) for first in range(0, NUM, 900)]
    filtered = preprocess_recording(recording_of(model, samples), model.preprocessing_config).noise_levels
    group = replace(model.groups[0], noise=ChannelNoise(filtered, np.ones(6)))
    measured = replace(model, groups=(group,))
    spikewise.stream(ListSource(whole), model=measured, sinks=tmp_path / "right")
    assert "times that of the training" not in caplog.text
    spikewise.stream(ListSource(whole), model=measured, sinks=tmp_path / "wrong", gain_to_uV=0.1)
    (ratio,) = re.findall(r"is ([\d.]+) times that of the training", caplog.text)
    assert float(ratio) == pytest.approx(0.1, rel=0.15)


def test_after_an_error_what_was_found_is_kept(model, samples, tmp_path):
    def chunks():
        yield Chunk(samples[:30_000])
        raise StreamError("it broke", "a whole stream", "start again")

    with pytest.raises(StreamError, match="It broke"):
        spikewise.stream(ListSource(chunks()), model=model, sinks=tmp_path / "result")
    lines = (tmp_path / "result" / "spikes.csv").read_text().splitlines()
    assert len(lines) > 100
    assert (tmp_path / "result" / "model.safetensors").exists()


def test_the_growing_table_is_whole_at_every_moment(model, samples, expected, tmp_path):
    counts, file = [], tmp_path / "result" / "spikes.csv"

    def chunks():
        for first in range(0, NUM, 500):
            yield Chunk(samples[first : first + 500])
            lines = file.read_text().split("\n")
            assert lines[-1] == ""
            counts.append(len(lines) - 2)

    spikewise.stream(ListSource(chunks()), model=model, sinks=tmp_path / "result")
    assert counts == sorted(counts)
    assert len(set(counts)) > 10
    assert len(file.read_text().splitlines()) == len(expected) + 1


def test_a_stream_ends_after_its_duration_or_when_nothing_comes(model, samples, tmp_path):
    blocks = [Chunk(samples[first : first + 300]) for first in range(0, NUM, 300)]
    result = spikewise.stream(ListSource(blocks), model=model, sinks=tmp_path / "a", duration_s=0.5)
    assert result.num_samples == 15_000

    def silent():
        yield blocks[0]
        while True:
            time.sleep(0.02)
            yield Chunk(samples[:0])

    result = spikewise.stream(ListSource(silent()), model=model, sinks=tmp_path / "b", wait_s=0.2)
    assert result.num_samples == 300
    assert threading.active_count() < 20


def test_delays_are_counted_in_little_memory():
    delays, random = Delays(), np.random.default_rng(0)
    values = random.lognormal(-6, 1, 100_000)
    for part in np.split(values, 100):
        delays.add(part)
    summary = delays.summary_ms()
    assert summary["count"] == 100_000
    for share, name in ((50, "p50_ms"), (99, "p99_ms")):
        assert summary[name] == pytest.approx(1000 * np.percentile(values, share), rel=0.011)
    assert summary["max_ms"] == pytest.approx(1000 * values.max(), abs=1e-3)
    assert Delays().summary_ms() == {"count": 0}
