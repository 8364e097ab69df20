"""Vectors in a processor's registers, for compiled loops.

With Numba, LLVM has to find the operations that can process many numbers at once, and it keeps the sums of
nested loops in memory. So the loops that take most of the time are written with LLVM's own vectors, which
become the registers of the processor: one of AVX-512, two of AVX, four of NEON. The functions of this module
write such code within ``numba.extending.intrinsic``. Addresses are 64-bit integers, in bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from llvmlite import ir

FLOAT, DOUBLE, INDEX = ir.FloatType(), ir.DoubleType(), ir.IntType(64)
_LANE = ir.IntType(32)


def number(value: int) -> ir.Constant:
    """Return a constant integer of 64 bits."""
    return ir.Constant(INDEX, value)


def after(builder: ir.IRBuilder, address: ir.Value, count: ir.Value | int, size: int) -> ir.Value:
    """Return the address `count` times `size` bytes after another."""
    count = number(count) if isinstance(count, int) else count
    return builder.add(address, builder.mul(count, number(size)))


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """Load a value or a vector from an address, which may be unaligned."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    """Store a value or a vector at an address, which may be unaligned."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def spread(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """Return a vector whose elements all have one value."""
    kind = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_LANE, count), [0] * count))


def zeros(kind: ir.VectorType) -> ir.Constant:
    """Return a vector of zeros."""
    zero = 0 if isinstance(kind.element, ir.IntType) else 0.0
    return ir.Constant(kind, [zero] * kind.count)


def multiply_add(builder: ir.IRBuilder, one: ir.Value, other: ir.Value, total: ir.Value) -> ir.Value:
    """Return ``one * other + total``, with one rounding if the processor has such an operation."""
    width = 64 if total.type.element == DOUBLE else 32
    name = f"llvm.fmuladd.v{total.type.count}f{width}"
    kind = ir.FunctionType(total.type, [total.type] * 3)
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [one, other, total])


def folded(
    builder: ir.IRBuilder, vector: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]
) -> ir.Value:
    """Reduce a vector, whose length is a power of two, to one number by joining its halves repeatedly."""
    count = vector.type.count
    while count > 1:
        count //= 2
        low, high = (
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(_LANE, count), list(range(first, first + count)))
            )
            for first in (0, count)
        )
        vector = join(low, high)
    return builder.extract_element(vector, ir.Constant(_LANE, 0))


def paired(
    builder: ir.IRBuilder, rows: list[ir.Value], join: Callable[[ir.Value, ir.Value], ir.Value]
) -> list[ir.Value]:
    """Return half as many vectors, in which each number joins two neighbouring numbers of a row."""
    count = rows[0].type.count
    masks = [ir.Constant(ir.VectorType(_LANE, count), list(range(first, 2 * count, 2))) for first in (0, 1)]
    return [
        join(*(builder.shuffle_vector(one, other, mask) for mask in masks))
        for one, other in zip(rows[::2], rows[1::2], strict=True)
    ]


def lower(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    """Return the elementwise minimum."""
    return builder.select(builder.fcmp_ordered("<", one, other), one, other)


def higher(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    """Return the elementwise maximum."""
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Return the columns of a square of rows, whose size is a power of two."""
    count = len(rows)
    step = 1
    while step < count:  # exchange the squares across the diagonal, from small to large
        low = [at if not at & step else count + at - step for at in range(count)]
        high = [at + step if not at & step else count + at for at in range(count)]
        masks = [ir.Constant(ir.VectorType(_LANE, count), mask) for mask in (low, high)]
        exchanged = list(rows)
        for at in range(count):
            if not at & step:
                pair = rows[at], rows[at + step]
                exchanged[at], exchanged[at + step] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        rows, step = exchanged, 2 * step
    return rows


def count_up(
    builder: ir.IRBuilder,
    count: ir.Value,
    carried: list[ir.Value],
    step: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """Write a loop over the indices 0 to `count` - 1, with `count` above 0; `step` may write inner loops.

    Parameters
    ----------
    carried : list
        Values that each step changes, before the first step.
    step : callable
        Takes the index and the values, and returns the new values.

    Returns
    -------
    list
        Values after the last step.
    """
    before = builder.block
    loop, end = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(INDEX)
    values = [builder.phi(value.type) for value in carried]
    results = step(index, list(values))
    following = builder.add(index, number(1))
    last = builder.block
    index.add_incoming(number(0), before)
    index.add_incoming(following, last)
    for phi, start, result in zip(values, carried, results, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(result, last)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, end)
    builder.position_at_end(end)
    return results


def ticks(builder: ir.IRBuilder) -> ir.Value:
    """Return a counter of the processor with a constant rate; 0 if none is known."""
    machine = platform.machine().lower()
    kind = ir.FunctionType(INDEX, [])
    if machine in ("x86_64", "amd64"):
        name = "llvm.readcyclecounter"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [])
    if machine in ("aarch64", "arm64"):
        return builder.asm(kind, "mrs $0, cntvct_el0", "=r", [], True)
    return number(0)
