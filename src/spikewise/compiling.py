"""Loops that are compiled when they first run, and kept on disk where there is a place to keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

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
