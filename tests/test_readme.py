"""What the README shows works: its Python example runs, its commands are known."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spikewise.cli.main import app

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs_and_sorts_well(tmp_path):
    (example,) = blocks("python")
    finished = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    accuracy = float(re.search(r"pooled accuracy ([\d.]+)", finished.stdout).group(1))
    assert accuracy >= 0.95
    assert (tmp_path / "model.safetensors").is_file()


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("spikewise ")]


@pytest.mark.parametrize("command", commands())
def test_each_command_is_one_that_spikewise_knows(command):
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
