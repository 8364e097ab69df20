"""What each sorter makes of the whole of a recording: accuracy, units, spikes reported twice, and seconds.

    python benchmarks/scenes.py [plain late tetrode ...] [--seeds 1 2 3] [--sorters NAME ...]

Scenes: plain, late, drift60, jump40, tetrode, pairs, mearec384. Sorters: Spikewise without labels, with
labels (--labels-per-unit), those that come with SpikeInterface, and the peers that are installed, here or for
the Python of --peers-python. Each runs in its own process, one after another, from the file to its result.
Scenes and results are kept in the folder: given again, the command goes on, and runs only what is missing,
failed, or has changed. See docs/scenes.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from scene_benchmark.making import SCENES, digest_in, make_scene, scene_settings
from scene_benchmark.outputs import write_outputs
from scene_benchmark.running import RunOptions, now, read_once, run_once, saved_rows
from scene_benchmark.sorters import LABELLED, SORTERS, choose_sorters, find_installed

from spikewise.core.errors import MissingExtraError, SettingError, SomeFailed, SpikewiseError
from spikewise.papers.figures import require_matplotlib

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))
TEMPLATES = DATA / "mearec" / "templates_neuropixels384_390_seed671.h5"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="*", default=list(SCENES), metavar="SCENE", help="default: all")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "bench" / "scenes", help="for all output")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--sorters", nargs="+", choices=SORTERS, help="default: all installed")
    parser.add_argument("--skip", nargs="+", choices=SORTERS, default=[], help="sorters that do not run")
    parser.add_argument("--peers-python", type=Path, help="Python that has other sorters")
    parser.add_argument("--labels-per-unit", type=int, help=f"also run {LABELLED}, with so many")
    parser.add_argument("--labels-s", type=float, default=60.0, help="seconds with labels, at most half")
    parser.add_argument("--spikewise-args", default="", help="further options of spikewise sort, in quotes")
    parser.add_argument("--reference", choices=SORTERS, default="tridesclous2", help="of ratios")
    parser.add_argument("--repeats", type=int, default=1, help="runs on each recording")
    parser.add_argument("--templates", type=Path, default=TEMPLATES, help="MEArec template file")
    parser.add_argument("--seconds", type=float, help="length of the scenes; default: that of each")
    parser.add_argument("--units", type=int, help="units of the scenes; default: that of each")
    parser.add_argument("--noise", type=float, help="noise in uV; default: that of each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--timeout-s", type=float, default=7200.0, help="a sorter that takes longer is ended")
    parser.add_argument("--show", action="store_true", help="run nothing, only write tables")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> list[str]:
    """Run what is missing; return which runs failed."""
    begun = now()
    installed = find_installed(options.peers_python)
    sorters, missing = choose_sorters(
        installed, options.sorters, options.skip, with_labels=options.labels_per_unit is not None
    )
    if missing and not options.sorters:
        print("not installed, not run:", ", ".join(missing), flush=True)
    run_options = RunOptions(
        options.folder,
        installed,
        options.jobs,
        options.timeout_s,
        options.spikewise_args,
        15 if options.labels_per_unit is None else options.labels_per_unit,
        options.labels_s,
        begun,
    )
    settings = [
        scene_settings(name, seed, options.templates, options.seconds, options.units, options.noise)
        for name in options.scenes
        for seed in options.seeds
    ]
    failed = []
    for wanted in settings:
        scene = make_scene(wanted, options.folder / "scenes", options.jobs)
        read_once(scene)
        for repeat in range(1, options.repeats + 1):
            for sorter in sorters:
                row, is_new = run_once(scene, sorter, repeat, run_options)
                place = f"{wanted.name} seed {wanted.seed} {sorter} {repeat}"
                if row["error"]:
                    failed.append(place)
                outcome = f"failed: {row['error']}" if row["error"] else f"accuracy {row['accuracy']:.4f}"
                seconds = f"{row['seconds']:.1f} s, load {row['load']:g}"
                print(f"{place}: {outcome}, {seconds}{'' if is_new else ' (kept)'}", flush=True)
    return failed


def run(options: argparse.Namespace) -> None:
    """Make the scenes, run the sorters, write the tables.

    Raises
    ------
    SpikewiseError
        If something given cannot be used, or a sorter failed.
    """
    unknown = [name for name in options.scenes if name not in SCENES]
    if unknown:
        raise SettingError(
            f"there is no scene {unknown[0]}", f"scenes are {', '.join(SCENES)}", "choose among them"
        )
    if min(options.repeats, options.jobs, options.timeout_s, options.labels_s) <= 0:
        raise SettingError(
            "--repeats, --jobs, --timeout-s or --labels-s is not above 0", "numbers above 0", "change it"
        )
    has_figure = True
    try:
        require_matplotlib()
    except MissingExtraError as error:
        has_figure = False
        print(f"there will be no figure: {error}", file=sys.stderr)
    load = os.getloadavg()
    failed = [] if options.show else measure(options)
    digests = {
        (name, seed): digest_in(options.folder / "scenes" / f"{name}_seed{seed}")
        for name in options.scenes
        for seed in options.seeds
    }
    rows = saved_rows(options.folder, digests)
    if not rows:
        raise SettingError(
            f"{options.folder} holds no run of these scenes", "runs of an earlier command", "leave out --show"
        )
    facts = {"load_at_start": [round(value, 2) for value in load]}
    print("\n" + write_outputs(options.folder, rows, options.reference, facts, has_figure))
    if failed:
        raise SomeFailed(
            f"{len(failed)} runs failed: {', '.join(failed)}",
            f"their output is in {options.folder / 'runs'}",
            "give the command again to try them again",
        )


def main(arguments: list[str] | None = None) -> int:
    try:
        run(parse(arguments))
    except SpikewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
