"""Loops that are compiled when they first run, and kept on disk where there is a place to keep them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

import numba
from numba.core.dispatcher import Dispatcher

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(fastmath: bool | set[str] = False) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function with Numba; it runs without Python's lock.

    Where neither the package nor the home folder can be written, it is compiled anew in each process.

    Parameters
    ----------
    fastmath : bool or set of str
        What the compiler may assume of floating-point arithmetic; see ``numba.jit``.
    """

    def compile_function(function: Function) -> Function:
        made: Any
        try:
            made = numba.njit(nogil=True, cache=True, fastmath=fastmath)(function)
        except RuntimeError:  # no place for the cache
            made = numba.njit(nogil=True, fastmath=fastmath)(function)
        return cast("Function", made)

    return compile_function


def keep_compiled(module: ModuleType) -> None:
    """Let the functions of a module that Numba compiles be kept on disk, where there is a place to keep them.

    For modules of libraries that compile anew in each process: SpikeInterface's clustering, which its sorters
    need too, takes 20 s each time. Numba makes a function anew when the file that holds it has changed, and
    not when another file has: name only modules that compile nothing of other modules.
    """
    for function in vars(module).values():
        if isinstance(function, Dispatcher):
            try:
                function.enable_caching()
            except RuntimeError:  # no place for the cache
                return
