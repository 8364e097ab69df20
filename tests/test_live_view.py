"""The view of a stream in the browser: what its messages hold, and who may read them."""

import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from browser import chromium, wait_until
from streams import RATE, live_model, noise, offline

import spikewise
from spikewise.core.config import StreamConfig
from spikewise.jobs.live.latency import Delays
from spikewise.jobs.live.loop import StreamLoop
from spikewise.jobs.live.sinks import units_of
from spikewise.jobs.live.source import Chunk, StreamError, StreamFacts
from spikewise.jobs.live.view import View
from spikewise.models.channel_noise import ChannelNoise

pytest.importorskip("tornado")


@pytest.fixture(scope="module")
def model():
    model = live_model()
    noise_of = ChannelNoise(model.groups[0].noise.levels, np.ones(6))
    return replace(model, groups=(replace(model.groups[0], noise=noise_of),))


class Waiting:
    """Chunks from a list; before it ends, it waits until it is told."""

    def __init__(self, chunks):
        self.given, self.may_end = chunks, threading.Event()

    def open(self):
        return StreamFacts(6, RATE, "int16")

    def chunks(self):
        yield from self.given
        while not self.may_end.wait(0.02):
            yield Chunk(np.empty((0, 6), "int16"))

    def close(self):
        pass


@pytest.fixture
def viewed(model):
    """A stream that has been sorted and still shows its view: (view, samples)."""
    samples = noise(30_000, 6)
    chunks = [Chunk(samples[at : at + 300]) for at in range(0, 15_000, 300)]
    chunks += [Chunk(samples[15_000:15_300], gap=600)]
    source = Waiting(chunks)
    sorter = spikewise.StreamSorter(model)
    units = units_of(model, sorter.latency.look_ahead_samples, sorter.main_columns)
    loop = StreamLoop(sorter, RATE, StreamConfig(), [], lambda *_: None)
    view = View(units, loop.result)
    loop.watch(view, view.take)
    thread = threading.Thread(target=loop.run, args=(source, lambda result: {}))
    thread.start()
    while loop.result.num_samples < 15_900:
        time.sleep(0.02)
    yield view, samples
    source.may_end.set()
    thread.join(20)


def read_messages(url):
    with urllib.request.urlopen(url + "events", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        line = next(line for line in answer if line.startswith(b"data: "))
    return json.loads(line[6:])


def test_messages_tell_spikes_rates_delays_and_losses(viewed, model):
    view, samples = viewed
    message = read_messages(view.url)
    (first,) = offline(model, samples[:15_000])
    told = [(round(t * RATE), unit) for t, unit in message["spikes"]]
    assert len(told) == message["num_spikes"] > 50
    assert [unit for _, unit in told[: len(first)]] == [unit for _, unit in first]
    assert all(abs(a - b) <= 2 for (a, _), (b, _) in zip(told, first, strict=False))
    assert message["num_missing"] == 600
    assert message["num_gaps"] == 1
    counts = np.bincount([unit for _, unit in told], minlength=5)
    assert message["counts"] == counts.tolist()
    np.testing.assert_allclose(message["rates"], counts / (15_900 / RATE), rtol=0.05)
    assert sum(message["histogram"]["counts"]) == message["delay"]["count"]
    assert len(message["shapes"]) == 5
    assert len(message["shapes"][0]) == 75


def test_a_waveform_is_the_mean_of_the_raw_samples_of_the_nearest_channel(model):
    sorter = spikewise.StreamSorter(model)
    units = units_of(model, sorter.latency.look_ahead_samples, sorter.main_columns)
    loop = StreamLoop(sorter, RATE, StreamConfig(), [], lambda *_: None)
    view = View(units, loop.result)
    loop.watch(view, view.take)
    samples = np.full((6000, 6), 100.0, "float32")
    samples[:, 2] += np.random.default_rng(0).normal(0, 30, 6000)
    source = Waiting([Chunk(samples[at : at + 50]) for at in range(0, 6000, 50)])
    source.may_end.set()
    shapes = []
    loop.run(source, lambda result: shapes.extend(view.message(0)[1]["shapes"]) or {})
    columns = model.groups[0].network.channel_index[:, 0].numpy()
    assert sorter.main_columns.tolist() == columns.tolist()
    for shape, column in zip(shapes, columns, strict=True):
        assert (np.ptp(shape) > 0) <= (column == 2)


def test_only_this_computer_may_read(viewed):
    view, _ = viewed
    assert urllib.request.urlopen(view.url, timeout=20).status == 200
    for host in ("evil.example", "127.0.0.1.evil.example"):
        request = urllib.request.Request(view.url + "events", headers={"Host": host})
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(request, timeout=20)


def test_a_port_that_is_taken_is_told(viewed, model):
    view, _ = viewed
    port = int(view.url.rstrip("/").rpartition(":")[2])
    sorter = spikewise.StreamSorter(model)
    with pytest.raises(StreamError, match=f"port {port}"):
        View(units_of(model, 60), StreamLoop(sorter, RATE, StreamConfig(), [], print).result, port)


def test_delays_in_bins():
    delays = Delays()
    for delay_s in (0.00005, 0.0003, 0.004, 0.004, 5.0):
        delays.add(delay_s)
    found = delays.histogram()
    below = dict(zip([*found["edges_ms"], "more"], found["counts"], strict=True))
    assert below == {**dict.fromkeys(below, 0), 0.1: 1, 0.5: 1, 5: 2, "more": 1}


def test_the_browser_draws_it(viewed):
    view, _ = viewed
    with chromium() as browser:
        browser.get(view.url)
        wait_until(browser, "return document.getElementById('spikes').textContent !== '0'", timeout_s=60)
        drawn = browser.execute_script(
            "return ['raster','rates','shapes','delays'].map(id => { const c = document.getElementById(id);"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0); })"
        )
        assert drawn == [True] * 4
        assert browser.execute_script("return document.getElementById('missing').textContent") == "600"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
