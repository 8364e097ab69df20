"""Events that resemble a unit are told from noise and from the spikes of a unit beside it."""

import numpy as np
import pytest
from arrays import ArrayTraces

from spikewise.learning.examples.resemblance import resembling_columns
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.training_set import Block
from spikewise.learning.examples.unit_templates import UnitTemplates

CENTRE, LENGTH = 50, 100
SPREAD = np.array([[1.0, 0.6, 0.2, 0.0], [0.5, 1.0, 0.5, 0.1]])
MOVED = np.array([[0.6, 1.0, 0.6, 0.2], [0.2, 0.6, 1.0, 0.5]])


def shapes(spread: np.ndarray) -> np.ndarray:
    """Two units that differ in their time course: (units, channels, samples)."""
    time = np.arange(LENGTH) - CENTRE
    fast = -np.exp(-((time / 4.0) ** 2)) + 0.4 * np.exp(-(((time - 12) / 6.0) ** 2))
    slow = -np.exp(-((time / 8.0) ** 2)) + 0.6 * np.exp(-(((time - 22) / 8.0) ** 2))
    return (15 * spread[:, :, None] * np.stack([fast, slow])[:, None]).astype(np.float32)


@pytest.fixture(scope="module")
def scene():
    """Spikes of both units at rest and of the first moved, on noise."""
    random = np.random.default_rng(0)
    traces = random.normal(size=(40_000, 4)).astype(np.float32)
    frames = {
        name: np.arange(begin, 39_000, 3000)
        for name, begin in (("rest", 700), ("moved", 1700), ("other", 2700))
    }
    at_rest, moved = shapes(SPREAD), shapes(MOVED)
    waveforms = {"rest": at_rest[0], "moved": moved[0], "other": at_rest[1]}
    for name, of_name in frames.items():
        for frame in of_name:
            traces[frame - CENTRE : frame - CENTRE + LENGTH] += waveforms[name].T
    stored = StoredTraces(ArrayTraces(traces), [Block(0, 0, 40_000, held_out=False)], 120)
    templates = UnitTemplates(at_rest, CENTRE, np.zeros((2, 2)), np.array([5, 5]))
    return stored, templates, moved[None], frames


def found_of(columns: np.ndarray, frames: np.ndarray) -> float:
    return np.mean([np.abs(columns - frame).min() <= 3 for frame in frames])


def test_own_spikes_at_rest_and_moved_resemble_a_unit_and_those_of_another_do_not(scene):
    stored, templates, moved, frames = scene
    near = np.array([[0, 1, 2, 3], [1, 0, 2, 3]])
    first, second = resembling_columns(stored, templates, near, moved)
    assert found_of(first, frames["rest"]) == 1
    assert found_of(first, frames["moved"]) == 1
    assert found_of(first, frames["other"]) == 0
    assert found_of(second, frames["other"]) == 1
    assert found_of(second, frames["rest"]) == 0
    every = np.concatenate(list(frames.values()))
    assert all(np.abs(every - column).min() <= 6 for column in first)  # hardly noise among them
    assert (np.diff(first) > 0).all()


def test_a_unit_without_a_template_resembles_nothing(scene):
    stored, templates, moved, _ = scene
    values = templates.values.copy()
    values[1] = 0
    silent = UnitTemplates(values, CENTRE, templates.positions_um, templates.num_spikes)
    gone = moved.copy()
    gone[:, 1] = 0
    first, second = resembling_columns(stored, silent, np.array([[0, 1, 2, 3]] * 2), gone)
    assert len(first)
    assert not len(second)
