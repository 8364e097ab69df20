"""Compile loops at their first call, and cache them on disk if possible."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, TypeVar, cast

import numba
from numba.core.dispatcher import Dispatcher

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(
    fastmath: bool | set[str] = False, error_model: Literal["python", "numpy"] = "python"
) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function with Numba; it runs without Python's lock.

    If neither the package nor the home folder is writable, each process compiles it again.

    Parameters
    ----------
    fastmath : bool or set of str
        Permitted assumptions about floating-point arithmetic; see ``numba.jit``.
    error_model : {"python", "numpy"}
        What a division by zero does: an error, or infinity. Loops with a test of each division are not done
        in vectors.
    """

    def compile_function(function: Function) -> Function:
        result: Any
        options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": error_model}
        try:
            result = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder for the cache
            result = numba.njit(**options)(function)
        return cast("Function", result)

    return compile_function


def keep_compiled(module: ModuleType) -> None:
    """Cache the compiled functions of a module on disk, if possible.

    This is for modules of libraries that compile again in each process: SpikeInterface's clustering, which
    its sorters need too, takes 20 s each time. Numba compiles a cached function again if its own file
    changes, but not if another file changes: use this only for modules that compile no functions of others.
    """
    for function in vars(module).values():
        if isinstance(function, Dispatcher):
            try:
                function.enable_caching()
            except RuntimeError:  # no writable folder for the cache
                return
