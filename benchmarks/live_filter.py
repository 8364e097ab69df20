"""What the live filter costs in accuracy, with and without the traces that decide which units fired.

    python benchmarks/live_filter.py OUTPUT SCENE [SCENE ...] [--label-s 60]

A scene is a folder with a recording and its truth, such as those of `scenes.py` and `spikewise simulate`. For
each filter, a model is learnt from 15 labels a unit of the first seconds; it stays in OUTPUT. The rest of the
recording is sorted with it. Prints a table, and writes live_filter.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import spikeinterface

import spikewise

FILTERS = ("zero-phase", "live")


def accuracy(scene: Path, model: Path, filter_name: str, explain: bool, label_s: float) -> float:
    """Return the pooled accuracy after the labels; the model is learnt if it is not there."""
    recording = spikewise.load_recording(scene / "recording")
    truth = spikeinterface.load(scene / "truth")
    if not model.exists():
        spikewise.train(
            recording,
            truth,
            output=model,
            filter=filter_name,
            label_interval=(0.0, label_s),
            labels_per_unit=15,
            device="cpu",
        )
    result = spikewise.sort(
        recording, model=model, explain=explain, motion="none", report=False, trust=False, device="cpu"
    )
    end_s = recording.get_num_samples(0) / recording.get_sampling_frequency()
    return float(spikewise.evaluate(truth, result.sorting, interval=(label_s, end_s)).accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--label-s", type=float, default=60.0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    lines = [
        "| scene | usual filter | live filter | usual, `--no-explain` | live, `--no-explain` |",
        "| --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    for scene in options.scenes:
        found = [
            accuracy(
                scene, options.output / f"{scene.name}_{name}.safetensors", name, explain, options.label_s
            )
            for explain in (True, False)
            for name in FILTERS
        ]
        lines.append(f"| {scene.name} | " + " | ".join(f"{one:.4f}" for one in found) + " |")
        print(lines[-1], flush=True)
    (options.output / "live_filter.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
