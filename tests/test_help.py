"""What the command's help shows, and where a wrong option sends its user."""

import signal
import time

import pytest
from commands import finish, run, start

from spikewise.cli.help import FIRST_SETTINGS


def options_in(text):
    words = text.replace("│", " ").split()
    return {word for word in words if word.startswith("--") and word.lstrip("-")}


@pytest.mark.parametrize("command", ["sort", "train", "sort-many"])
def test_help_shows_the_settings_that_matter(capsys, command):
    short, whole = (run(capsys, command, flag) for flag in ("--help", "--help-advanced"))
    assert short.code == whole.code == 0
    first = {f"--{name.lower().replace('_', '-')}" for name in FIRST_SETTINGS}
    assert len(first) == 15
    assert first <= options_in(short.out) < options_in(whole.out)
    assert "--help-advanced shows all" in short.out
    hidden = {"--merge-ms", "--chunk-s", "--unit-steps", "--epochs", "--near-channels", "--refresh-min"}
    assert not hidden & options_in(short.out)
    assert hidden <= options_in(whole.out)
    assert options_in(run(capsys, command, "--help").out) == options_in(short.out)


def test_own_options_are_always_shown(capsys):
    shown = options_in(run(capsys, "sort", "--help").out)
    assert {"--output", "--labels", "--model", "--overwrite", "--resume", "--json"} <= shown


def test_options_of_one_design_stand_in_its_group(capsys):
    text = run(capsys, "sort", "--help-advanced").out
    parts = text.split("╭─ ")
    of_group = {part.split(" ─")[0]: options_in(part) for part in parts[1:]}
    assert {"--unit-steps", "--drift-um", "--refresh-min"} <= of_group["Design neighbourhood only"]
    assert {"--epochs", "--spatial-features", "--frozen"} <= of_group["Design esort-paper only"]
    assert not {"--unit-steps", "--refresh-min", "--epochs"} & of_group["Running"] | of_group["Network"] & {
        "--unit-steps"
    }


@pytest.mark.parametrize("command", ["info", "evaluate", "export phy", "stream"])
def test_help_of_other_commands_is_whole(capsys, command):
    outcome = run(capsys, *command.split(), "--help")
    assert outcome.code == 0
    assert len(options_in(outcome.out)) >= 1


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("sort x -o y --sead 3", "spikewise sort --help"),
        ("waveforms train x", "spikewise waveforms train --help"),
        ("export phy x", "spikewise export phy --help"),
        ("nothing", "spikewise --help"),
        ("waveforms nothing", "spikewise waveforms --help"),
    ],
)
def test_a_wrong_option_points_to_the_help_of_its_command(capsys, words, place):
    outcome = run(capsys, *words.split())
    assert outcome.code == 2
    assert outcome.err.strip().endswith(f"See: {place}")


@pytest.mark.parametrize("delay_s", [0.5, 2.0])
def test_ctrl_c_while_the_command_starts_is_quiet(delay_s, tmp_path):
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # it may be ignored here
    process = start("gui", tmp_path / "none", {"--recording": tmp_path}, **default)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert "Traceback" not in outcome.err + outcome.out
