"""Read damaged files: each must be read or refused, within 5 s and 1 GiB.

    python benchmarks/fuzz.py --inputs 10000 [--parser NAME ...] [--seed 0] [-o fuzz.json]

Each parser runs in a process of its own, whose memory may grow by 1 GiB. An input that takes 5 s, ends the
process, or raises anything but an error of Spikewise is a failure; it is printed with its number.
"""

import argparse
import faulthandler
import json
import logging
import multiprocessing
import queue
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

LIMIT_S, LIMIT_BYTES = 5, 2**30


class TookTooLong(BaseException):
    """Raised at the time limit; not an Exception, so that no parser catches it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--parser", action="append", help="name of a parser; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-seconds", type=float, help="stop a parser after so long")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    import fuzzing

    rows = []
    print("parser                    inputs    read refused  failed       s  MiB grown")
    for name in options.parser or fuzzing.NAMES:
        row = run_parser(name, options.inputs, options.seed, options.most_seconds)
        rows.append(row)
        print(
            f"{name:24s} {row['inputs']:7d} {row['read']:7d} {row['refused']:7d} {len(row['failures']):7d} "
            f"{row['seconds']:7.0f} {row['grown_mib']:10.0f}",
            flush=True,
        )
        for failure in row["failures"][:5]:
            print("   ", failure.replace("\n", "\n    "), flush=True)
        if options.output:
            options.output.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["failures"] for row in rows))


def run_parser(name: str, inputs: int, seed: int, most_seconds: float | None) -> dict:
    """Read damaged files of one kind, in a process that is started again if it ends."""
    context = multiprocessing.get_context("fork")
    counts, failures, done, grown, started = Counter(), [], 0, 0.0, time.monotonic()
    while done < inputs and (most_seconds is None or time.monotonic() - started < most_seconds):
        reports = context.Queue()
        worker = context.Process(target=work, args=(name, range(done, inputs), seed, reports))
        worker.start()
        timeout_s = 120.0  # the worker first writes a valid file
        while done < inputs:
            try:
                report = reports.get(timeout=timeout_s)
            except queue.Empty:
                failures.append(f"input {done}: no report in {timeout_s:g} s, or the process ended")
                done += 1
                break
            timeout_s = 2.0 * LIMIT_S
            if report == "ready":
                continue
            kind, text, grown_now = report
            grown = max(grown, grown_now)
            counts[kind] += 1
            if kind == "failed":
                failures.append(f"input {done}: {text}")
            done += 1
            if most_seconds is not None and time.monotonic() - started > most_seconds:
                break
        worker.kill()
        worker.join()
    return {
        "parser": name,
        "inputs": done,
        "read": counts["read"],
        "refused": counts["refused"],
        "failures": failures,
        "seconds": time.monotonic() - started,
        "grown_mib": grown,
    }


def work(name: str, indices: range, seed: int, reports: multiprocessing.Queue) -> None:
    """Report for each input whether it was read or refused, or how it failed."""
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    import fuzzing

    parser = next(one for one in fuzzing.PARSERS if one.name == name)
    with tempfile.TemporaryDirectory(prefix="spikewise-fuzz-") as folder:
        template, target = Path(folder) / "valid", Path(folder) / "place" / "below" / "spoilt"
        template.mkdir()
        parser.make(template)
        parser.read(template)
        limit = virtual_bytes() + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.signal(signal.SIGALRM, took_too_long)
        reports.put("ready")
        for index in indices:
            signal.alarm(LIMIT_S)
            try:
                was_read, _ = fuzzing.attempt(parser, template, target, Random(f"{seed} {name} {index}"))
                kind, text = ("read" if was_read else "refused"), ""
            except BaseException:
                kind, text = "failed", traceback.format_exc(limit=-4)
            signal.alarm(0)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            reports.put((kind, text, grown))
    reports.close()
    reports.join_thread()


def took_too_long(*_: object) -> None:
    raise TookTooLong(f"longer than {LIMIT_S} s")


def virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
