"""Adds the sorter ``spikewise`` to SpikeInterface, without importing SpikeInterface.

SpikeInterface keeps its sorters in a list and a dictionary of ``spikeinterface.sorters.sorterlist``. To
import this module takes seconds. So ``import spikewise`` only adds a finder to ``sys.meta_path``. When anyone
imports the module, the sorter is added and the finder is removed. If the module is imported already, the
sorter is added at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

SORTER_LIST = "spikeinterface.sorters.sorterlist"
SORTER_MODULE = "spikewise.jobs.spikeinterface_sorter"


def register_sorter() -> None:
    """Add the sorter ``spikewise`` to those of SpikeInterface, now or when their list is imported."""
    if SORTER_LIST in sys.modules:
        _add_to(sys.modules[SORTER_LIST])
    elif not any(isinstance(finder, _SorterListFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SorterListFinder())


def _add_to(sorter_list: ModuleType) -> None:
    sorter = importlib.import_module(SORTER_MODULE).SpikewiseSorter
    if sorter.sorter_name not in sorter_list.sorter_dict:
        sorter_list.sorter_full_list.append(sorter)
        sorter_list.sorter_dict[sorter.sorter_name] = sorter


class _SorterListFinder(MetaPathFinder):
    """Finds only SpikeInterface's list of sorters, with Python's own finder, and wraps its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != SORTER_LIST:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(Loader):
    """Loads the list of sorters with its own loader, then adds the sorter."""

    def __init__(self, loader: Loader, finder: MetaPathFinder):
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _add_to(module)
