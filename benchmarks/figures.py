"""The figures of the documentation: ``python benchmarks/figures.py`` writes them into docs/images.

``method.png`` shows the input and the output of a trained network on a part of a recording that was not used
for training. ``labels.png`` draws the table of labels of docs/few-labels.md, where its command is.
"""

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt

import spikewise
from spikewise.core.config import SortingConfig
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.groups import Preparation, prepare_groups
from spikewise.sorting.peaks import find_peaks
from spikewise.sorting.tensor_detector import DenseDetector

REPOSITORY = Path(__file__).resolve().parents[1]
LENGTH_S = 0.04
COLOURS = [f"C{index}" for index in range(10)]


def draw_method(path: Path) -> None:
    """Learn a simulated recording; draw traces, probabilities and responses of a short part of it."""
    simulation = spikewise.simulate(num_units=10, duration_s=24, seed=1)
    model = spikewise.train(
        simulation.recording, simulation.sorting, label_interval=(0, 12), labels_per_unit=15, seed=0
    )
    part, config = model.groups[0], spikewise.Config()
    reader = prepare_groups(simulation.recording, Preparation.of(config, model))[0].reader
    rate = model.sampling_frequency
    detector = make_detector(
        part.network, part.thresholds, rate, model.detection_config, SortingConfig(sparse=False, device="cpu")
    )
    assert isinstance(detector, DenseDetector)
    start = _busiest(
        simulation.sorting.to_spike_vector()["sample_index"], round(13 * rate), round(LENGTH_S * rate)
    )
    stop = start + round(LENGTH_S * rate)
    network = detector.network
    with torch.inference_mode():
        around = reader.read(0, start - network.left_margin, stop + network.right_margin)
        probabilities = torch.sigmoid(network(torch.tensor(around)[None], 1)[0]).numpy()
    responses, _ = detector.responses(reader.read(0, *detector.padded_interval(start, stop)), start, stop)
    peaks, units = (
        found.numpy() for found in find_peaks(responses, detector.thresholds, detector.merge_radius)
    )
    responses = responses[detector.merge_radius : -detector.merge_radius].numpy()

    times = 1000 * np.arange(stop - start) / rate
    traces = reader.read(0, start, stop)
    figure, axes = plt.subplots(3, 1, figsize=(9, 8.4), sharex=True, height_ratios=[2.4, 1, 1])
    for channel in range(traces.shape[1]):
        axes[0].plot(times, traces[:, channel] + 9 * channel, color="0.35", linewidth=0.6)
    for peak, unit in zip(peaks, units, strict=True):
        channel = int(np.abs(traces[max(0, peak - 12) : peak + 12]).max(axis=0).argmax())
        near = slice(max(0, peak - 20), peak + 28)
        for other in range(max(0, channel - 2), min(traces.shape[1], channel + 3)):
            axes[0].plot(times[near], traces[near, other] + 9 * other, color=COLOURS[unit], linewidth=1.3)
    for unit in range(probabilities.shape[1]):
        axes[1].plot(times, probabilities[:, unit], color=COLOURS[unit], linewidth=1)
        axes[2].plot(times, responses[:, unit], color=COLOURS[unit], linewidth=1)
    axes[2].plot(times[peaks], responses[peaks, units], "v", color="black", markersize=6)
    axes[2].axhline(float(detector.thresholds.min()), color="0.5", linestyle="--", linewidth=0.8)
    axes[0].set(yticks=[], ylabel="channels")
    axes[1].set(ylabel="probability")
    axes[2].set(ylabel="response", xlabel="ms", xlim=(times[0], times[-1]))
    axes[0].set_title("filtered traces, and the spikes found, in the colour of their unit", loc="left")
    axes[1].set_title("output of the network of each unit: a plateau for each spike", loc="left")
    axes[2].set_title("after the triangle: a peak for each spike, above the threshold (dashed)", loc="left")
    _save(figure, path)


def draw_labels(path: Path) -> None:
    """Draw the accuracies of the table of labels: each point is a recording, the lines are means."""
    text = (REPOSITORY / "docs" / "few-labels.md").read_text(encoding="utf-8")
    table = text.split("| | labels for each unit | seed 1 | seed 2 | seed 3 |")[1].split("\n\n")[0]
    found: dict[str, dict[int, list[float]]] = {}
    name = ""
    for line in table.splitlines()[2:]:
        cells = [cell.strip().replace("*", "") for cell in line.strip("|").split("|")]
        name = re.sub(r" \(default\)", "", cells[0]) or name
        if cells[1]:
            found.setdefault(name, {})[int(cells[1])] = [float(cell) for cell in cells[2:5]]
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for index, (name, rows) in enumerate(found.items()):
        for count, values in rows.items():
            axes.plot([count] * len(values), values, "o", color=COLOURS[index], markersize=4, alpha=0.6)
        means = [np.mean(values) for values in rows.values()]
        axes.plot(list(rows), means, color=COLOURS[index], label=name)
    axes.set(xlabel="labelled spikes of each unit", ylabel="accuracy", xlim=(0, 52))
    axes.set_xticks([5, 10, 15, 30, 50])
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def _busiest(samples: np.ndarray, first: int, length: int) -> int:
    """Return the start of the part with the most spikes after a sample, at least 2 ms before a spike."""
    starts = samples[samples >= first] - length // 20
    counts = np.searchsorted(samples, starts + length) - np.searchsorted(samples, starts)
    return int(starts[counts.argmax()])


def _save(figure: plt.Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images")
    options = parser.parse_args()
    draw_labels(options.output / "labels.png")
    draw_method(options.output / "method.png")


if __name__ == "__main__":
    main()
