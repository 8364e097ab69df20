"""Time of the export to Phy, relative to that of the sort; both run in turn.

    python benchmarks/export_phy.py RECORDING MODEL [--rounds 3] [--folder bench/export_phy]

``spikewise bench speed -o bench/speed`` writes both: ``bench/speed/scene/recording`` and
``bench/speed/model.safetensors``.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import spikewise


def seconds(call: Callable[..., object], *arguments: object, **options: object) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call(*arguments, **options)
    return time.perf_counter() - start


def main() -> None:
    """Sort and export in turn; print the seconds and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("bench/export_phy"))
    arguments = parser.parse_args()
    recording = spikewise.load_recording(arguments.recording)
    ratios = []
    for turn in range(1 + arguments.rounds):
        shutil.rmtree(arguments.folder, ignore_errors=True)
        result, phy = arguments.folder / "result", arguments.folder / "phy"
        sort_s = seconds(spikewise.sort, recording, model=arguments.model, output=result, report=False)
        export_s = seconds(spikewise.export_phy, result, recording, phy)
        spikes = len(np.load(phy / "spike_times.npy"))
        first = " (first, not counted: it compiles loops)" if turn == 0 else ""
        print(f"{spikes} spikes: sort {sort_s:.2f} s, export {export_s:.2f} s{first}", flush=True)
        if turn:
            ratios.append(export_s / sort_s)
    print(f"export / sort: {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
