"""The largest memory of a process that only sorts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from spikewise.api import load_recording, sort
from spikewise.core.errors import SpikewiseError
from spikewise.papers.speed.scene import ON_CPU, Scene

_CALL = "import sys; from spikewise.papers.speed.memory import sort_alone; sort_alone(*sys.argv[1:])"


def peak_gib(scene: Scene, model_file: Path, output: Path) -> float | None:
    """Return the largest memory of a process that sorts the tested part, in GiB.

    Returns
    -------
    float or None
        None if the system does not report it.

    Raises
    ------
    SpikewiseError
        If the process fails.
    """
    arguments = (scene.folder / "recording", scene.start, model_file, output)
    done = subprocess.run([sys.executable, "-c", _CALL, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SpikewiseError(
            f"sorting in a process of its own failed: {(done.stderr.splitlines() or [''])[-1]}",
            "a process that succeeds",
            "sort a shorter stretch with --duration-s if the memory was not enough",
        )
    return json.loads(done.stdout.splitlines()[-1])


def sort_alone(recording_folder: str, start: str, model_file: str, output: str) -> None:
    """Sort a stretch from `start` on, and print the largest memory of this process so far, in GiB.

    On Linux the resource usage of a process includes that of its parent at the start. So the peak of the
    process's own memory is read from the kernel instead.
    """
    recording = load_recording(recording_folder)
    stretch = recording.frame_slice(int(start), recording.get_num_samples(0))
    sort(stretch, model=model_file, output=output, config=ON_CPU)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        print(int(line.split()[1]) / 2**20)
    elif sys.platform == "win32":
        print("null")
    else:
        import resource

        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30)
