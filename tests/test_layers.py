"""Imports go downward only: every import is read, those inside functions and for type checkers included."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "spikewise"

# From the ground up; a module imports from its own room and from those before it. Within a room, folders
# follow the same rule; all modules together have no cycle.
ROOMS = [
    "core",
    "data",
    "models",
    "sorting",
    "learning",
    "discovery",
    "output",
    "jobs",
    "single_channel",
    "api",
    "cli",
    "papers",
    "__main__",
    "__init__",
]
FOLDERS = {
    "data": ["spatial", "recordings", "labels", "simulation", ""],
    "sorting": ["", "live"],
    "discovery": ["", "motion"],
    "output": ["", "report", "export", "results"],
    "jobs": ["state", "", "live"],
    "single_channel": ["", "live"],
    "papers": ["", "cnn1d", "esort", "speed", "cli"],
}
"""The order of the folders within a room; "" are the files beside them."""
MOST_FILES = 16
PATHS = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name below ``spikewise``; of a folder's ``__init__`` that of the folder."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in PATHS}


def imports_of(module: str, source: str, modules=frozenset(MODULES)) -> set[str]:
    """Modules of spikewise that a source imports anywhere in it; `module` is its own name."""
    package = (
        module if module in {name_of(p) for p in PATHS if p.stem == "__init__"} else module.rpartition(".")[0]
    )
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(name.name, None) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: from where this module is
                parents = package.split(".") if package not in ("", "__init__") else []
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join(["spikewise", *parents, *([node.module] if node.module else [])])
            names = [(base, name.name) for name in node.names]
        else:
            continue
        for base, name in names:
            if base != "spikewise" and not base.startswith("spikewise."):
                continue
            inside = base.removeprefix("spikewise").removeprefix(".")
            whole = ".".join(part for part in (inside, name) if part)
            found.add(whole if whole in modules else inside or "__init__")
    return found


def room_of(module: str) -> int:
    """Place of a module's room in the order."""
    top = module.split(".")[0]
    if top not in ROOMS:
        pytest.fail(f"{module!r} is in no room; add {top!r} to ROOMS")
    return ROOMS.index(top)


def goes_up(module: str, imported: str) -> bool:
    """Whether an import goes to a later room, or to a later folder of the same room."""
    if room_of(imported) != room_of(module):
        return room_of(imported) > room_of(module)
    order = FOLDERS.get(module.split(".")[0])
    if order is None or "." not in imported:
        return False

    def place(name: str) -> int:
        inside = name.split(".")[1]
        return order.index(inside if inside in order else "")

    return place(imported) > place(module)


def violations(module: str, source: str) -> list[str]:
    """Modules that a source must not import."""
    return sorted(name for name in imports_of(module, source) if goes_up(module, name))


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def graph_of(changed: dict[str, str] | None = None) -> dict[str, set[str]]:
    """Return what each module imports; `changed` sources stand in for those on disk."""
    sources = {name: path.read_text() for name, path in MODULES.items()} | (changed or {})
    return {name: imports_of(name, source) - {name} for name, source in sources.items()}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_import_goes_up(path):
    assert violations(name_of(path), path.read_text()) == []


def test_no_imports_go_round_in_a_circle():
    assert cycle_of(graph_of()) == []


def test_nothing_imports_the_papers():
    outside = {name: used for name, used in graph_of().items() if not name.startswith("papers")}
    assert [name for name, used in outside.items() if any(u.split(".")[0] == "papers" for u in used)] == []


def test_folders_are_small_and_say_what_they_are_for():
    for folder in {path.parent for path in PATHS}:
        files = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(files) <= MOST_FILES, f"{folder.name} has {len(files)} files"
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
    entries = [path for path in SOURCE.iterdir() if not path.name.startswith("__")]
    assert len(entries) <= 12


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("data.labels.label_set", "from spikewise.models.esort import EsortNetwork", ["models.esort"]),
        ("models.esort", "def f():\n    from spikewise import cli", ["cli"]),
        ("models.esort", "def f():\n    from ..sorting import batch", ["sorting.batch"]),
        ("sorting.batch", "if TYPE_CHECKING:\n    import spikewise.jobs.state.shards", ["jobs.state.shards"]),
        ("data.recordings.reader", "from spikewise.data.labels import label_set", ["data.labels.label_set"]),
        ("core.files", "from spikewise import __version__", ["__init__"]),
        ("sorting.batch", "import spikewise.data.labels.label_set", []),
        ("data.labels.label_set", "from spikewise.data.recordings.reader import Traces", []),
    ],
)
def test_an_import_that_goes_up_would_be_noticed(module, source, found):
    assert violations(module, source) == found


def test_a_circle_inside_a_function_would_be_noticed():
    text = (
        MODULES["core.errors"].read_text() + "\ndef f():\n    from spikewise.core.settings import setting\n"
    )
    assert set(cycle_of(graph_of({"core.errors": text}))) == {"core.errors", "core.settings"}
