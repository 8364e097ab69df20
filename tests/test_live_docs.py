"""What docs/live.md shows works: its commands are known, its examples run against real streams."""

import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import spikeinterface
from stream_servers import Sender, falcon_sender, free_port
from streams import RATE, explained, live_model, noise, offline, pairs, recording_of

import spikewise
from spikewise.cli import main as cli
from spikewise.cli.main import app
from spikewise.jobs.live.source import Chunk, StreamFacts
from spikewise.models.channel_noise import ChannelNoise

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "live.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith("spikewise ")]


@pytest.fixture(scope="module")
def model():
    model = explained(live_model())
    in_uV = ChannelNoise(model.groups[0].noise.levels, np.ones(6))
    return replace(model, groups=(replace(model.groups[0], noise=in_uV),))


@pytest.fixture(scope="module")
def samples():
    return noise(30_000, 6)


@contextmanager
def running(example: str, *replaced: tuple[str, str]):
    """An example in a process of its own; the block gets a function that returns its next line."""
    for old, new in replaced:
        assert old in example
        example = example.replace(old, new)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", example], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process.stdout.readline
    finally:
        process.kill()
        process.wait()


class Late:
    """Samples that begin after a moment, in which a receiver can start."""

    def __init__(self, samples: np.ndarray, after_s: float):
        self.samples, self.after_s = samples, after_s

    def open(self):
        return StreamFacts(self.samples.shape[1], RATE, str(self.samples.dtype))

    def chunks(self):
        time.sleep(self.after_s)
        for first in range(0, len(self.samples), 300):
            yield Chunk(self.samples[first : first + 300])
            time.sleep(0.002)

    def close(self):
        pass


@pytest.mark.parametrize("command", commands())
def test_each_command_is_one_that_spikewise_knows(command):
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_there_are_examples_for_open_ephys_lsl_and_python():
    assert len(commands()) == 9
    assert len(blocks("python")) == 3


def test_the_receiver_of_udp_prints_the_spikes_of_a_falcon_output(model, samples, tmp_path):
    spikes = offline(model, samples)[0]
    expected = [f"{model.unit_ids[unit]} {sample / RATE}\n" for sample, unit in spikes]
    (example,) = [block for block in blocks("python") if "SOCK_DGRAM" in block]
    udp, port = free_port(), free_port()
    in_uV = samples.astype(np.float32)
    with running(example, ("9000", str(udp))) as next_line:
        time.sleep(0.5)
        sender = falcon_sender(port, [(at, in_uV[at : at + 100]) for at in range(0, 30_000, 100)], RATE)
        spikewise.stream(
            f"falcon://127.0.0.1:{port}",
            model=model,
            sinks=[f"udp://127.0.0.1:{udp}", tmp_path / "session"],
            stream="probe",
            wait_s=1.0,
        )
        sender.finish()
        assert [next_line() for _ in expected] == expected
    assert pairs(spikeinterface.load(tmp_path / "session" / "sorting").to_spike_vector()) == spikes


def test_the_receiver_of_lsl_prints_the_units(model, samples):
    pytest.importorskip("pylsl")
    expected = [model.unit_ids[unit] for _, unit in offline(model, samples)[0]]
    (example,) = [block for block in blocks("python") if "pylsl" in block]
    name = f"spikes-{os.getpid()}"
    with running(example, ('"spikes"', f'"{name}"')) as next_line:
        sender = Sender(
            lambda: spikewise.stream(Late(samples, 4.0), model=model, sinks=f"lsl://{name}") and None
        )
        found = [next_line().split()[0] for _ in range(100)]
        sender.finish()
    assert found == expected[:100]


def test_the_python_example_runs(model, samples, tmp_path):
    recording_of(model, samples).save(folder=tmp_path / "first_minutes")
    spikewise.save_model(model, tmp_path / "live.safetensors")
    (example,) = [block for block in blocks("python") if "StreamSorter" in block]
    example = f"import os; os.chdir({str(tmp_path)!r})\n{example}"
    with running(example) as next_line:
        assert next_line() == "3.533 ms until a spike is certain\n"


def test_the_three_steps_find_the_spikes_of_a_tetrode(tetrode, tmp_path):
    """Train, sort and stream, as the page begins."""
    settings = {"patches_per_unit": 2000, "unit_steps": 150, "seed": 0, "device": "cpu"}
    file = tmp_path / "live.safetensors"
    spikewise.train(tetrode.recording, tetrode.truth, filter="live", output=file, **settings)
    checked = spikewise.sort(tetrode.recording, model=file).sorting
    arguments = ["stream", tetrode.recording, "--model", file, "--sink", tmp_path / "session"]
    assert cli.main([*map(str, arguments), "--speed", "fast"]) == 0
    streamed = spikeinterface.load(tmp_path / "session" / "sorting")
    assert pairs(streamed.to_spike_vector()) == pairs(checked.to_spike_vector())
    assert spikewise.evaluate(tetrode.truth, tmp_path / "session").accuracy > 0.9
