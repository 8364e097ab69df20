"""How long learning takes beside other programs: alone, beside one busy process, and beside four.

    python benchmarks/busy.py [--busy 0 1 4] [--repeats 2] [--baseline PYTHONPATH]

A recording of 16 channels and 6 units is simulated; its units are learnt from 20 s of labels, each time in a
process of its own, as a user starts it. `--baseline` is a folder with another version of the package: both
versions are measured by turns. Prints a table of seconds, and the ratio to the time alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SPIN = "while True: pass"
LEARN = """
import sys, time, spikewise
started = time.perf_counter()
model = spikewise.train(sys.argv[1] + "/recording", sys.argv[1] + "/truth", label_interval=(0.0, 20.0))
print(time.perf_counter() - started, model.hash())
"""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep processes busy, each on one core."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def learn(folder: Path, source: str | None) -> tuple[float, str]:
    """Return the seconds of learning in a process of its own, and the hash of the model."""
    environment = os.environ if source is None else {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-c", LEARN, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, model_hash = run.stdout.split()[-2:]
    return float(seconds), model_hash


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 4], help="numbers of busy processes")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--baseline", help="folder with another version of the package")
    options = parser.parse_args()
    versions = {"now": None} | ({"baseline": options.baseline} if options.baseline else {})
    with tempfile.TemporaryDirectory(prefix="spikewise-busy-") as place:
        folder = Path(place) / "made"
        simulate = [
            "simulate",
            "--output",
            str(folder),
            "--num-units",
            "6",
            "--duration-s",
            "20",
            "--seed",
            "3",
        ]
        subprocess.run([sys.executable, "-m", "spikewise", *simulate, "--probe", "linear-16"], check=True)
        for source in versions.values():
            learn(folder, source)  # compiles
        alone: dict[str, float] = {}
        print(f"{'busy':>4} {'version':>9} {'seconds':>8} {'times alone':>11}  model")
        for count in options.busy:
            with busy_processes(count):
                time.sleep(0.5)
                runs = [
                    (name, *learn(folder, versions[name]))
                    for _ in range(options.repeats)
                    for name in versions
                ]
            for name in versions:
                seconds = statistics.median(s for version, s, _ in runs if version == name)
                hashes = {model_hash for version, _, model_hash in runs if version == name}
                ratio = seconds / alone.setdefault(name, seconds)
                print(
                    f"{count:>4} {name:>9} {seconds:>8.1f} {ratio:>11.2f}  {' '.join(h[:12] for h in hashes)}"
                )


if __name__ == "__main__":
    main()
