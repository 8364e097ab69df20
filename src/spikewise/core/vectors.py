"""Vectors that stay in a processor's registers, for compiled loops.

Numba leaves it to LLVM to find what can be done many numbers at a time, and keeps sums in memory where a loop
lies within another. Loops that count are therefore written here as LLVM's own vectors, which it turns into
what a processor has: one register of AVX-512, two of AVX, four of NEON. The functions of this module write
such code within ``numba.extending.intrinsic``; addresses are whole numbers of 64 bits, in bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from llvmlite import ir

FLOAT, DOUBLE, INDEX = ir.FloatType(), ir.DoubleType(), ir.IntType(64)
_PLACE = ir.IntType(32)


def number(value: int) -> ir.Constant:
    """Return a whole number of 64 bits."""
    return ir.Constant(INDEX, value)


def after(builder: ir.IRBuilder, address: ir.Value, count: ir.Value | int, size: int) -> ir.Value:
    """Return the address that lies `count` times `size` bytes after another."""
    count = number(count) if isinstance(count, int) else count
    return builder.add(address, builder.mul(count, number(size)))


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """Load a value or a vector from an address that need not be aligned."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    """Store a value or a vector at an address that need not be aligned."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def spread(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """Return a vector that holds one value everywhere."""
    kind = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_PLACE, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_PLACE, count), [0] * count))


def zeros(kind: ir.VectorType) -> ir.Constant:
    """Return a vector of zeros."""
    zero = 0 if isinstance(kind.element, ir.IntType) else 0.0
    return ir.Constant(kind, [zero] * kind.count)


def multiply_add(builder: ir.IRBuilder, one: ir.Value, other: ir.Value, total: ir.Value) -> ir.Value:
    """Return ``one * other + total``, rounded once where the processor does so."""
    width = 64 if total.type.element == DOUBLE else 32
    name = f"llvm.fmuladd.v{total.type.count}f{width}"
    kind = ir.FunctionType(total.type, [total.type] * 3)
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [one, other, total])


def folded(
    builder: ir.IRBuilder, vector: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]
) -> ir.Value:
    """Return one number of a vector of a power of two: halves are joined until one number is left."""
    count = vector.type.count
    while count > 1:
        count //= 2
        low, high = (
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(_PLACE, count), list(range(first, first + count)))
            )
            for first in (0, count)
        )
        vector = join(low, high)
    return builder.extract_element(vector, ir.Constant(_PLACE, 0))


def paired(
    builder: ir.IRBuilder, rows: list[ir.Value], join: Callable[[ir.Value, ir.Value], ir.Value]
) -> list[ir.Value]:
    """Return half as many vectors, in which each number joins two that lie side by side."""
    count = rows[0].type.count
    masks = [ir.Constant(ir.VectorType(_PLACE, count), list(range(first, 2 * count, 2))) for first in (0, 1)]
    return [
        join(*(builder.shuffle_vector(one, other, mask) for mask in masks))
        for one, other in zip(rows[::2], rows[1::2], strict=True)
    ]


def lower(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    """Return the lower of two numbers, each with each."""
    return builder.select(builder.fcmp_ordered("<", one, other), one, other)


def higher(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    """Return the higher of two numbers, each with each."""
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Return the columns of as many rows as each row has numbers, a power of two."""
    count = len(rows)
    step = 1
    while step < count:  # exchange squares that lie across the diagonal, from small to large
        low = [at if not at & step else count + at - step for at in range(count)]
        high = [at + step if not at & step else count + at for at in range(count)]
        masks = [ir.Constant(ir.VectorType(_PLACE, count), mask) for mask in (low, high)]
        made = list(rows)
        for at in range(count):
            if not at & step:
                pair = rows[at], rows[at + step]
                made[at], made[at + step] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        rows, step = made, 2 * step
    return rows


def count_up(
    builder: ir.IRBuilder,
    count: ir.Value,
    carried: list[ir.Value],
    step: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """Write a loop over 0 to `count`, which is above 0; `step` may write loops within it.

    Parameters
    ----------
    carried : list
        Values before the first step.
    step : callable
        Takes the index and the values, and returns the values after it.

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
    made = step(index, list(values))
    following = builder.add(index, number(1))
    last = builder.block
    index.add_incoming(number(0), before)
    index.add_incoming(following, last)
    for phi, start, result in zip(values, carried, made, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(result, last)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, end)
    builder.position_at_end(end)
    return made


def ticks(builder: ir.IRBuilder) -> ir.Value:
    """Return a clock of the processor, that counts at a constant rate; 0 where none is known."""
    machine = platform.machine().lower()
    kind = ir.FunctionType(INDEX, [])
    if machine in ("x86_64", "amd64"):
        name = "llvm.readcyclecounter"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [])
    if machine in ("aarch64", "arm64"):
        return builder.asm(kind, "mrs $0, cntvct_el0", "=r", [], True)
    return number(0)
