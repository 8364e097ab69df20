"""The documentation is true: its site builds, its reference is whole, its blocks of code run or parse."""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run
from pages import PAGES, REPOSITORY, Block, blocks, command_lines, inline_code, is_of_the_reader
from spikeinterface.core import NumpyRecording

import spikewise
from spikewise.cli.main import app
from spikewise.cli.options import GROUPED
from spikewise.core.config import Config
from spikewise.core.settings import Settings
from spikewise.data.labels.label_files import load_labels
from spikewise.jobs.many import read_list
from spikewise.papers.esort.config import EsortPaperConfig
from spikewise.papers.speed.config import SpeedConfig

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PEERS = ("spikeinterface[full]", "spikesift", "mountainsort5", "kilosort")
"""Other sorters, which are installed into an environment of their own."""
RUN = ["index.md", "first-sort.md"]
"""Pages whose blocks are run, but for those about files of the reader's own."""


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def named(given) -> dict:
    """Parameters of a test, each with its place in the pages."""
    return {"argvalues": given, "ids": [str(item) for item in given]}


# Facts that several files tell


def test_the_version_is_the_same_wherever_it_is_told():
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, flags=re.MULTILINE)[1] == spikewise.__version__
    assert PYPROJECT["project"]["version"] == spikewise.__version__


def test_a_release_runs_the_steps_that_can_be_tried_here():
    workflow = (REPOSITORY / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "run: make dist" in workflow
    assert re.search(r"^dist:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


# The code of the pages


def test_every_block_is_of_a_language_that_is_tested():
    languages = {str(block): block.language for page in PAGES for block in blocks(page)}
    plain = {place for place, language in languages.items() if language == ""}
    assert {languages[place] for place in languages} <= {"sh", "python", ""}
    assert len(plain) <= 4, plain  # a list of recordings, labels, the flow of the data, lines of a log


@pytest.mark.parametrize("block", **named(all_blocks("sh")))
def test_each_command_exists_and_takes_its_options(block):
    for words in command_lines(block):
        check_command(words)


def check_command(words: list[str]) -> None:
    """Check a command line: nothing is run."""
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words = words[1:]
    if words[0] == "spikewise":
        app.parse_args(words[1:], exit_on_error=False, print_error=False)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif Path(words[0]).name == "pip":
        check_pip(words)
    elif words[0] == "python" and words[1].startswith(("benchmarks/", "docs/tooling/")):
        source = (REPOSITORY / words[1]).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("-")):
            assert f'"{option}"' in source, f"{words[1]} has no option {option}"
    else:
        assert words[0] in ("phy", ".") or words[:3] == ["python3", "-m", "venv"], words


def check_pip(words: list[str]) -> None:
    assert words[1] == "install"
    extras = PYPROJECT["project"]["optional-dependencies"]
    for word in words[2:]:
        if match := re.fullmatch(r"(?:\.|spikewise)\[([\w,]+)\]", word):
            assert set(match[1].split(",")) <= set(extras), word
        else:
            assert word in (".", "torch", "--index-url", *PEERS) or word.startswith(
                "https://download.pytorch.org/"
            )


@pytest.mark.parametrize("command", ["sort R -o O --batch 3", "sort R -o O --chunk-s -1", "mend R", "sort"])
def test_a_command_that_does_not_exist_would_be_noticed(command):
    with pytest.raises(Exception, match=r"(?i)unknown|chunk_s|requires"):
        check_command(["spikewise", *command.split()])


def all_options() -> set[str]:
    return {name for command in reference().all_commands() for a in command.arguments for name in a.names}


def reference():
    """The module that writes the pages of reference/."""
    folder = str(REPOSITORY / "docs" / "tooling")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("reference_pages")


def test_the_site_shows_the_notebook_and_links_to_the_report_of_the_demo(tmp_path, monkeypatch):
    reference()  # its folder is now on the path
    config = pytest.importorskip("mkdocs.config").load_config(str(REPOSITORY / "mkdocs.yml"))
    monkeypatch.setattr(config.plugins, "_current_plugin", None, raising=False)  # as outside of a build
    files_of = importlib.import_module("mkdocs.structure.files").Files
    hooks = importlib.import_module("site_hooks")
    (tmp_path / "report.html").write_text("the report")
    index = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    home = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    monkeypatch.setattr(hooks, "_titles", defaultdict(str))
    for there in (True, False):
        monkeypatch.setattr(hooks, "DEMO_REPORT", tmp_path / ("report.html" if there else "nothing"))
        files = hooks.on_files(files_of([]), config)
        page = hooks.on_page_markdown(index, home, config, files)
        assert ("(images/report.png)](example-report.html)" in page) is there
        assert "](locust-tetrode.md)" in page
        assert (files.get_file_from_path("example-report.html") is not None) is there
    notebook = files.get_file_from_path("locust-tetrode.md").content_string
    assert "```python\nimport os" in notebook
    assert "](locust-tetrode.ipynb)" in notebook


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_within_the_text_exist(page):
    scripts = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "benchmarks").glob("*.py")]
    known = all_options() | {"--help", *re.findall(r'add_argument\("(-[\w-]+)"', "".join(scripts))}
    others = {"pip": {"--index-url"}, "dask": {"--preload"}}
    for code in inline_code(page):
        words = code.split()
        options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", code))
        if words[0] == "python":
            check_command(words)
        elif words[0] == "spikewise" or code.startswith("-"):
            assert options <= known, f"{page.name}: {code}"
        elif words[0] in others:
            assert options <= others[words[0]], f"{page.name}: {code}"
        if words[0] == "spikewise" and len(words) > 1:
            names = [word for word in words[1:3] if re.fullmatch(r"[a-z-]+", word)]
            chain, _, rest = app.parse_commands(names)
            assert chain, f"{page.name}: {code}"
            assert not rest or app[chain[0]].default_command is not None, f"{page.name}: {code}"


@pytest.mark.parametrize("block", **named(all_blocks("python")))
def test_each_python_block_compiles_and_what_it_takes_of_spikewise_exists(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "spikewise":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "spikewise" or node.attr in spikewise.__all__, node.attr
        elif isinstance(node, ast.Call):
            check_call(node)


def check_call(node: ast.Call) -> None:
    """Check the names of the arguments of ``spikewise.NAME(...)``."""
    function = node.func
    if not (isinstance(function, ast.Attribute) and getattr(function.value, "id", None) == "spikewise"):
        return
    parameters = inspect.signature(getattr(spikewise, function.attr)).parameters
    has_options = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for keyword in node.keywords:
        known = keyword.arg in parameters or (has_options and keyword.arg in setting_names())
        assert known, f"spikewise.{function.attr} has no argument {keyword.arg}"


def setting_names() -> set[str]:
    return {field.name for kind in reference().all_settings() for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", RUN)
def test_blocks_run_in_their_order(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = []
    for block in blocks(REPOSITORY / "docs" / name):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
            done.append("python")
            continue
        for words in command_lines(block):
            if words[0] != "spikewise" or is_of_the_reader(words):
                continue
            outcome = run(capsys, *words[1:])
            assert outcome.code == 0, f"{block}: {outcome.err}"
            done.append(words[1])
            if words[1] == "evaluate":
                accuracy = float(re.search(r"pooled accuracy ([\d.]+)", outcome.out)[1])
                assert accuracy >= 0.95
    if name == "first-sort.md":
        assert done == ["simulate", "sort", "evaluate", "report", "python", "python", "sort"]
        assert (tmp_path / "sorted" / "report.html").is_file()
        first, again = (
            json.loads((tmp_path / n / "provenance.json").read_text()) for n in ("sorted", "again")
        )
        assert first["result"]["spikes_hash"] == again["result"]["spikes_hash"]


def test_every_extra_is_told():
    text = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(told) == sorted(PYPROJECT["project"]["optional-dependencies"])


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", PAGES[0].read_text(encoding="utf-8"))
    assert len(links) > 10
    assert all((REPOSITORY / link).exists() for link in links if not link.startswith("https://"))


def test_the_labels_that_curation_shows_are_read(tmp_path):
    (block,) = blocks(REPOSITORY / "docs" / "curation.md", "")
    (tmp_path / "labels.csv").write_text(block.text, encoding="utf-8")
    recording = NumpyRecording([np.zeros((6000, 1), dtype=np.int16)], 30000)
    found = load_labels(tmp_path / "labels.csv", recording)
    assert found.get_unit_spike_train("soma").tolist() == [3561]
    assert found.get_unit_spike_train("3").tolist() == [3102]


def test_the_list_of_recordings_is_read(tmp_path):
    (block,) = blocks(REPOSITORY / "docs" / "long-recordings.md", "")
    (tmp_path / "list.csv").write_text(block.text, encoding="utf-8")
    entries = read_list(tmp_path / "list.csv")
    assert [entry.output for entry in entries] == [tmp_path / "sorted" / name for name in ("day1", "day2")]


# The site


class Page(HTMLParser):
    """What a built page refers to, its anchors, its codes and its text."""

    def __init__(self, file: Path):
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.codes: list[str] = []
        self._in_code = 0
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(given["href"])
        elif given.get("src"):
            self.fetched.append(given["src"])
        if tag == "code":
            self._in_code += 1
            self.codes.append("")

    def handle_endtag(self, tag):
        self._in_code -= tag == "code"

    def handle_data(self, data):
        if self._in_code:
            self.codes[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


@pytest.fixture(scope="module")
def built_pages(site) -> dict[str, Page]:
    return {file.relative_to(site).as_posix(): Page(file) for file in sorted(site.rglob("*.html"))}


def test_every_source_is_a_page_and_nothing_else_is_there(site, built_pages):
    for page in PAGES[1:]:
        assert f"{page.stem}.html" in built_pages
    assert not list(site.rglob("*.py"))


def test_every_command_and_every_option_stands_in_the_reference(built_pages):
    commands, settings = built_pages["reference/commands.html"], built_pages["reference/settings.html"]
    found = reference().all_commands()
    assert {"sort", "waveforms sort", "papers esort", "bench speed", "export phy", "sort-many", "gui"} <= {
        " ".join(command.words) for command in found
    }
    for command in found:
        assert command.anchor in commands.ids
        for argument in command.own_arguments:
            assert set(argument.names) <= set(commands.codes), command.title
        for argument in command.arguments:
            assert set(argument.names) <= set(commands.codes) | set(settings.codes), command.title


def kinds_of_settings(kind: type = Settings) -> set[type]:
    return {inner for child in kind.__subclasses__() for inner in (child, *kinds_of_settings(child))}


def test_every_setting_stands_in_the_reference(built_pages):
    page = built_pages["reference/settings.html"]
    here = {kind for kind in kinds_of_settings() if kind.__module__.startswith("spikewise.")}
    here -= set(GROUPED)  # the same kinds once more, grouped for the help page
    assert {EsortPaperConfig, SpeedConfig} <= here
    assert set(reference().all_settings()) == here
    assert len(here) >= 20
    for kind in here:
        assert kind.__name__.lower() in page.ids
        assert {field.name for field in dataclasses.fields(kind)} <= set(page.codes), kind
    parts = {type(getattr(Config(), field.name)) for field in dataclasses.fields(Config)}
    assert parts <= here


def test_every_public_name_stands_in_the_reference(built_pages):
    page = built_pages["reference/python.html"]
    assert {name.lower() for name in spikewise.__all__} <= page.ids


def test_nothing_is_fetched_from_the_network(site, built_pages):
    for name, page in built_pages.items():
        assert page.fetched, name
        assert not [place for place in page.fetched if re.match(r"(https?:)?//", place)], name
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text), style


def test_every_link_within_the_site_leads_somewhere(site, built_pages):
    for name, page in built_pages.items():
        for link in (*page.links, *page.fetched):
            if re.match(r"[a-z]+:", link) or name == "404.html":
                continue
            place, _, anchor = link.partition("#")
            target = (site / name).parent / place if place else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{name}: {link}"
            if anchor and target.suffix == ".html":
                ids = built_pages[target.resolve().relative_to(site.resolve()).as_posix()].ids
                assert anchor in ids, f"{name}: {link}"
