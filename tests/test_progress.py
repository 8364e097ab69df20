"""Progress: the stages of a sort by name, bars in a terminal, lines in a file, and the time left."""

import contextlib
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pytest
from commands import finish, start
from rich.console import Console

import spikewise
from spikewise.core import progress as stages
from spikewise.core import progress_bars
from spikewise.core.config import Config
from spikewise.core.expected_time import (
    RemainingTime,
    Size,
    learning_seconds,
    preparing_seconds,
    sort_seconds,
    sorting_seconds,
)
from spikewise.core.progress import PartOf, Steps, expect
from spikewise.core.threads import on_all_cores, results_in_order

LINE = re.compile(r"^([a-z][a-z0-9 ,]*): (\d+\.\d) s( \(.*\))?$")


class Clock:
    """A time that stands still until it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


# --- the time left


def run_stages(expected, taken, told_every=0.1):
    """Run stages on a clock of their own; return (fraction of the time, time left shown / true time left)."""
    clock = Clock()
    left = RemainingTime(clock)
    left.expect(expected)
    whole, ratios = sum(taken.values()), []
    for stage, seconds in taken.items():
        steps = max(1, round(seconds / told_every))
        for step in range(steps + 1):
            left.tell(stage, step, steps)
            true = whole - (clock.now - 100)
            if true > 0.02 * whole:
                ratios.append(((clock.now - 100) / whole, left.remaining() / true))
            clock.now += seconds / (steps + 1)
    left.end()
    assert sum(left.spent.values()) == pytest.approx(whole)
    return ratios


EXPECTED = {"reading": 4.0, "finding units": 20.0, "learning, round 1 of 2": 8.0, "sorting": 10.0}


@pytest.mark.parametrize("pace", [0.3, 1.0, 7.0])
def test_the_time_left_is_right_on_a_machine_of_any_pace(pace):
    taken = {stage: pace * seconds for stage, seconds in EXPECTED.items()}
    late = [ratio for done, ratio in run_stages(EXPECTED, taken) if done > 0.1]
    assert len(late) > 50
    assert min(late) > 0.5
    assert max(late) < 2


def test_the_time_left_is_within_a_factor_of_two_where_stages_differ_from_what_was_expected():
    taken = {"reading": 5.0, "finding units": 15.0, "learning, round 1 of 2": 12.0, "sorting": 7.0}
    late = [ratio for done, ratio in run_stages(EXPECTED, taken) if 0.1 < done < 0.95]
    assert 0.5 < min(late) <= max(late) < 2


def test_a_stage_that_tells_nothing_still_moves_and_never_comes_to_its_end():
    clock = Clock()
    left = RemainingTime(clock)
    left.expect({"reading": 10.0, "sorting": 10.0})
    left.tell("reading", 0, 1)
    shown = []
    for _ in range(300):
        clock.now += 0.1
        shown.append((left.stage_fraction(), left.fraction(), left.remaining()))
    fractions, whole, remaining = zip(*shown, strict=True)
    assert list(fractions) == sorted(set(fractions))  # it moves each time
    assert fractions[-1] < 1
    assert list(whole) == sorted(whole)
    assert whole[-1] < 1
    assert min(remaining) >= 10.0  # sorting comes after it


def test_stages_that_are_left_out_do_not_count():
    """A resumed sort begins with a later stage."""
    clock = Clock()
    left = RemainingTime(clock)
    assert left.remaining() is None
    left.expect({"reading": 100.0, "sorting": 10.0, "report": 1.0})
    assert left.remaining() == pytest.approx(111.0)
    left.tell("sorting", 5, 10)
    assert left.remaining() < 12
    left.expect({"report": 3.0})  # known better
    assert 3 < left.remaining() < 14
    begun = RemainingTime(clock)
    begun.expect({stages.STARTING: 4.0})
    begun.tell(stages.STARTING, 0, 1)
    assert begun.remaining() is None  # of what comes after it, nothing is known yet
    left.tell("live", 1, 0)  # nobody knows how much there is
    assert not left.is_counted


def test_more_work_is_expected_to_take_longer():
    config = Config.from_options(labels_per_unit=15)
    small = Size(32, 60.0, 30000.0, 10, 60.0, 2)
    more = Size(384, 60.0, 30000.0, 200, 60.0, 2)
    for expected in (
        lambda size: learning_seconds(size, config),
        lambda size: sort_seconds(size, 1, config, is_labelled=False),
        lambda size: sorting_seconds(size, has_report=True, has_trust=True),
        preparing_seconds,
    ):
        assert sum(expected(small).values()) < sum(expected(more).values())
        assert all(seconds > 0 for seconds in expected(small).values())
    one = sort_seconds(small, 1, config, is_labelled=False)
    assert list(one)[:2] == [stages.READING, stages.FINDING_UNITS]
    assert list(one)[-1] == "learning, round 2 of 2"
    assert list(sort_seconds(small, 4, config, is_labelled=False)) == [stages.FINDING_UNITS, stages.LEARNING]
    other = Config.from_options(bootstrap="tridesclous2")
    assert "finding units with tridesclous2" in sort_seconds(small, 1, other, is_labelled=False)


# --- what is told


def test_steps_and_parts_add_up_to_their_whole():
    told = []
    steps = Steps(lambda *what: told.append(what), "finding units", {"events": 3.0, "clusters": 1.0})
    steps.begin("events")
    steps._told_s = -1.0
    steps.tell(1, 2)
    steps.begin("clusters")
    steps.end("5 units")
    assert told == [
        ("finding units", 0.0, 4.0, "events"),
        ("finding units", 1.5, 4.0, "events"),
        ("finding units", 3.0, 4.0, "clusters"),
        ("finding units", 4.0, 4.0, "5 units"),
    ]
    told.clear()
    part = PartOf(lambda *what: told.append(what), "learning", (1, 4), "group b", {"one": 1.0, "two": 3.0})
    part("one", 1, 2, "")
    part("two", 1, 3, "")
    part("another", 1, 2, "")
    assert [(stage, done, total) for stage, done, total, _ in told] == [
        ("learning", 1.125, 4),
        ("learning", 1.5, 4),
        ("learning", 1.0, 4),
    ]
    assert told[1][3] == "group b: two"
    expect(lambda *what: None, {"one": 1.0})  # who does not want to know is not told


@pytest.mark.parametrize("count", [0, 1, 50])
def test_loops_tell_how_far_they_are(count):
    told, done = [], []
    on_all_cores(done.append, range(count), lambda *what: told.append(what))
    assert sorted(done) == list(range(count))
    assert told == [(number, count) for number in range(1, count + 1)]
    told.clear()
    assert list(results_in_order(abs, range(count), lambda *what: told.append(what))) == list(range(count))
    assert told == [(number, count) for number in range(1, count + 1)]


def test_the_error_of_a_loop_that_tells_is_raised():
    def fail(number):
        if number == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        on_all_cores(fail, range(100), lambda *what: None)


# --- what is shown


def test_in_a_file_each_stage_is_one_line_with_its_seconds():
    file = io.StringIO()
    with progress_bars.progress_bars(Console(file=file, width=40)) as progress:
        expect(progress, {"reading": 1.0})
        progress("reading", 0, 1, "")
        time.sleep(0.12)
        progress("reading", 1, 1, "of a long note that is wider than the console")
        progress("sorting", 0, 1, "")
        time.sleep(0.12)
        with progress_bars.progress_bars() as inner:  # one display at a time
            assert inner is stages.silent
    lines = [LINE.match(line).groups() for line in file.getvalue().splitlines()]
    assert [name for name, *_ in lines] == ["reading", "sorting"]
    assert all(0.1 <= float(seconds) < 5 for _, seconds, _ in lines)
    assert lines[0][2] == " (of a long note that is wider than the console)"


def test_lines_stay_where_they_were_while_the_output_of_another_sorter_goes_to_its_log(capsys):
    log = io.StringIO()
    with progress_bars.progress_bars() as progress, contextlib.redirect_stderr(log):
        progress("finding units with lupin", 0, 1, "")
        time.sleep(0.06)
        print("what the sorter says", file=sys.stderr)
        progress("sorting", 0, 1, "")
        time.sleep(0.06)
    assert log.getvalue() == "what the sorter says\n"
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "finding units with lupin",
        "sorting",
    ]
    print("and later", file=sys.stderr)
    progress_bars.err.print("elsewhere")
    assert "elsewhere" in capsys.readouterr().err


def test_python_shows_nothing_where_nobody_looks(tetrode, trained, capsys):
    spikewise.sort(tetrode.recording, model=trained)
    assert capsys.readouterr().err == ""


def on_terminal(*command) -> tuple[list[float], str]:
    """Run a command on a terminal; return when it wrote, and what."""
    terminal, end = pty.openpty()
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = start(*command, stderr=end)
    os.close(end)
    times, shown = [time.monotonic()], b""
    while select.select([terminal], [], [], 120)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        times.append(time.monotonic())
        shown += piece
    os.close(terminal)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0, (shown, out)
    return times, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_shows_bars_that_move_and_the_lines_of_finished_stages(tetrode, tmp_path):
    options = {"--labels": tetrode.truth, "-o": tmp_path / "out", "--labels-per-unit": 15}
    times, shown = on_terminal("sort", tetrode.recording, options, {"--patches-per-unit": 4000})
    lines = [match[1] for line in re.split(r"[\r\n]+", shown) if (match := LINE.match(line.strip()))]
    assert lines[0] == "starting"
    assert [name for name in lines if name.startswith("learning")] == [
        "learning, round 1 of 2",
        "learning, round 2 of 2",
    ]
    assert lines[-1] == "report"
    assert re.search(r"all together .*about \d+:\d\d left", shown)
    seconds = times[-1] - times[1]
    assert len(times) > 1.5 * seconds  # four updates in a second, on a machine that is not busy


def test_the_python_interface_shows_a_bar_in_a_terminal_unless_it_is_told_not_to(tetrode, trained):
    code = "import sys, spikewise; spikewise.sort(sys.argv[1], model=sys.argv[2]{})"
    texts = []
    for option in ("", ", progress=False"):
        terminal, end = pty.openpty()
        arguments = [sys.executable, "-c", code.format(option), str(tetrode.recording), str(trained)]
        process = subprocess.Popen(arguments, stderr=end, stdout=subprocess.DEVNULL)
        os.close(end)
        shown = b""
        while True:
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        os.close(terminal)
        assert process.wait(60) == 0
        texts.append(shown.decode())
    assert "sorting" in texts[0]
    assert texts[1] == ""


def test_redirected_each_stage_is_a_line(tetrode, trained, tmp_path):
    outcome = finish(start("sort", tetrode.recording, {"--model": trained, "-o": tmp_path / "out"}))
    assert outcome.code == 0, outcome.err
    names = [LINE.match(line)[1] for line in outcome.err.splitlines()]
    assert names[0] == "starting"
    assert len(names) == len(set(names)) >= 3
    assert "\r" not in outcome.err
