"""Imports go downward only."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "spikewise"

# From top to bottom; a module may import from its own layer and from those below.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"waveform_cli"},
    {"papers_cli", "bench_cli", "many_cli", "export_cli", "gui_cli", "spikeinterface_sorter"},
    {"options"},
    {"console"},
    {"esort_papers"},
    {"speed", "speed_scene"},
    {"esort_runs"},
    {"many"},
    {"api", "waveform_api", "pretraining", "__init__"},
    {"exporting"},
    {"channel_sorting", "sort_job", "reporting", "curating"},
    {"refreshing"},
    {"finding"},
    {"learning", "transfer", "channel_learning"},
    {"unit_learning", "opening"},
    {"output", "evaluation"},
    {"sorting"},
    {"models"},
    {"data"},
    {
        "config",
        "waveform_config",
        "export_config",
        "registration",
        "settings",
        "errors",
        "seeds",
        "progress",
        "threads",
        "compiling",
        "vectors",
    },
]


def layer_of(module: str) -> int:
    """Layer of a dotted module name below ``spikewise``."""
    top = module.split(".")[0]
    found = [index for index, names in enumerate(LAYERS) if top in names]
    if not found:
        pytest.fail(f"the module {module!r} has no layer; add it to LAYERS")
    return found[0]


def imports_of(source: str) -> set[str]:
    """Modules of spikewise that a source imports, without the leading package name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "spikewise":
                found |= {f"spikewise.{name.name}" for name in node.names if name.name != "__version__"}
            else:
                found.add(node.module)
    return {name.removeprefix("spikewise.") for name in found if name.startswith("spikewise.")}


def violations(module: str, source: str) -> list[str]:
    return [name for name in imports_of(source) if layer_of(name) < layer_of(module)]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_import_goes_up(path):
    module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    assert violations(module, path.read_text()) == []


def test_an_import_that_goes_up_would_be_noticed():
    assert violations("data.labels", "from spikewise.models.esort import EsortNetwork") == ["models.esort"]
    assert violations("models.esort", "def f():\n    from spikewise import cli") == ["cli"]
    assert violations("sorting.detect", "import spikewise.data.labels") == []
