"""Log-space helpers shared by the closed forms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def double_precision() -> contextlib.AbstractContextManager[Any]:
    """64-bit floats inside a ``with`` block, whatever the user's setting, which is kept."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

    return enable_x64(True)


@jax.custom_jvp
def rounded_once(x: Array) -> Array:
    """``x`` as it is in memory, where a compiler would compute it anew at each of its uses.

    Each fused computation may round an input of its own making otherwise, and then a value need not
    equal itself: a row has no maximum. A loop's result is computed once. How often the loop runs is
    left to the data, since a compiler unrolls what it can count.
    """
    if not x.size:
        return x

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return x, carry[1] + 1

    count = (x[(0,) * x.ndim] > 0).astype(jnp.int32)
    return lax.while_loop(lambda carry: carry[1] < 2, again, (jnp.zeros_like(x), count))[0]


@rounded_once.defjvp
def _rounded_once_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return rounded_once(*primals), tangents[0]


@jax.jit
def expm1_ratio(x: Array) -> Array:
    """``(exp(x) − 1)/x``, equal to 1 at 0 and smooth through it."""
    small = jnp.abs(x) < 1e-2
    y = jnp.where(small, jnp.ones_like(x), x)
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    return jnp.where(small, series, jnp.expm1(y) / y)


@jax.jit
def log1p_ratio(x: Array) -> Array:
    """``log(1 + x)/x``, equal to 1 at 0 and smooth through it; NaN below −1."""
    small, ratio = _log1p_ratio_near_0(x)
    y = jnp.where(small, jnp.ones_like(x), x)
    return jnp.where(small, ratio, jnp.log(1 + y) / y)


def log1p(x: Array) -> Array:
    """``log(1 + x)``, NaN below −1; XLA's own loses two digits of float64 near ±0.4."""
    small, ratio = _log1p_ratio_near_0(x)
    near = jnp.where(small, x, jnp.zeros_like(x)) * ratio
    return jnp.where(small, near, jnp.log(1 + jnp.where(small, jnp.ones_like(x), x)))


def _log1p_ratio_near_0(x: Array) -> tuple[Array, Array]:
    """Where x is so small that ``1 + x`` would lose digits, and the ratio there."""
    small = (x > -0.4) & (x < 0.5)
    z = jnp.where(small, x, jnp.zeros_like(x))
    # log(1 + x) = 2 artanh(x/(2 + x))
    square = (z / (2 + z)) ** 2
    series = jnp.zeros_like(x)
    for k in range(13 if x.dtype == jnp.float64 else 6, -1, -1):
        series = 1 / (2 * k + 1) + square * series
    return small, 2 * series / (2 + z)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum of two floats and its rounding error, so that ``a + b = s + e`` exactly.

    The error is reported as 0 where the sum is not finite.
    """
    s = a + b
    t = s - a
    e = (a - (s - t)) + (b - t)
    return s, jnp.where(jnp.isfinite(s), e, jnp.zeros_like(e))


def _split(x: Array) -> tuple[Array, Array]:
    """Halves of ``x`` with so few bits each that their products are exact."""
    kept, integer = (12, jnp.uint32) if x.dtype == jnp.float32 else (27, jnp.uint64)
    mask = jnp.array((1 << x.dtype.itemsize * 8) - (1 << kept), integer)
    high = lax.bitcast_convert_type(lax.bitcast_convert_type(x, integer) & mask, x.dtype)
    return high, x - high


def divide_exactly(a: Array, a_low: Array, b: Array) -> tuple[Array, Array]:
    """The quotient ``(a + a_low)/b`` as a rounded float and a correction to it.

    The remainder ``a − q·b`` is formed without error from split products, which gives the quotient
    about twice the precision of its type. ``a_low`` must be small against ``a``.
    """
    q = a / b
    qh, ql = _split(q)
    bh, bl = _split(b)
    remainder = ((a - qh * bh) - qh * bl - ql * bh) - ql * bl
    low = (remainder + a_low) / b
    return q, jnp.where(jnp.isfinite(low) & jnp.isfinite(q), low, jnp.zeros_like(low))


def paired_sums(terms: Callable[..., tuple[Array, Array]], *arrays: Array) -> tuple[Array, Array]:
    """Sums of two terms over the last axis, keeping it, in one pass over memory.

    XLA fuses and vectorises one elementwise result per loop, and its variadic reductions run
    several times slower and accumulate one by one. A complex number is one result with two parts.
    Of long rows groups of entries far apart are summed first, for compilers vectorise over groups;
    ``terms`` sees slices of the arrays, since slices of what it makes would be cut from memory.
    """
    length = arrays[0].shape[-1]
    part, left = _groups(length)
    rest = lax.complex(*terms(*(x[..., length - left :] for x in arrays))).sum(-1, keepdims=True)
    if not part:
        return rest.real, rest.imag
    full = lax.complex(*terms(*(x[..., : length - left] for x in arrays)))
    batch = full.shape[:-1]
    groups = full.reshape(*batch, _GROUP, _SHARES, part).sum(-3).reshape(*batch, _SHARES * part)

    # One by one, or XLA would make both sums one.
    def total(groups: Array, rest: Array) -> Array:
        return groups.sum(-1, keepdims=True) + rest

    return total(groups.real, rest.real), total(groups.imag, rest.imag)


def long_max(function: Callable[..., Array], *arrays: Array) -> Array:
    """The maximum of a function of the entries over the last axis, keeping it, in groups if long.

    NaN may be passed over. XLA hands a plain maximum to a library which computes what it is of more
    slowly than it would itself.
    """
    *batch, length = arrays[0].shape
    part, left = _groups(length)
    if not part:
        return jnp.max(function(*arrays), axis=-1, keepdims=True)
    full = function(*(x[..., : length - left] for x in arrays))
    full = full.reshape(*batch, _GROUP, _SHARES, part)
    least = np.asarray(-np.inf, full.dtype)
    groups = lax.reduce(full, least, lambda x, y: jnp.where(x > y, x, y), (full.ndim - 3,))
    most = groups.reshape(*batch, _SHARES * part).max(-1, keepdims=True)
    if not left:
        return most
    rest = function(*(x[..., length - left :] for x in arrays))
    return jnp.maximum(most, rest.max(-1, keepdims=True))


def _groups(length: int) -> tuple[int, int]:
    """How many groups there are in each share of a row, and how many entries are left.

    Several cores have shares where there is a single row.
    """
    part = length // (_SHARES * _GROUP) if length > MANY else 0
    return part, length - part * _SHARES * _GROUP


MANY = 8192
"""Rows of more entries are long, and passes over them are what counts."""

_GROUP = 12
_SHARES = 16
_PARTS = 16


def in_parts(function: Callable[..., Array], *arrays: Array) -> Array:
    """An elementwise function of one part of the last axis after the other.

    What it holds on the way is then as small as a part.
    """

    def place(part: Array, out: Array) -> Array:
        start, _, entries = _part(part, arrays)
        return lax.dynamic_update_slice_in_dim(out, function(*entries), start, -1)

    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return lax.fori_loop(0, _PARTS, place, jnp.zeros(shape, arrays[0].dtype))


def paired_sums_in_parts(
    terms: Callable[..., tuple[Array, Array]], *arrays: Array
) -> tuple[Array, Array]:
    """What :func:`paired_sums` gives, in less memory and more time."""

    def add(part: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        start, first, entries = _part(part, arrays)
        new = start + jnp.arange(entries[0].shape[-1]) >= first
        new = jnp.broadcast_to(new, shape[:-1] + new.shape)

        def counted(*slices: Array) -> tuple[Array, Array]:
            a, b = terms(*slices[:-1])
            return jnp.where(slices[-1], a, 0.0), jnp.where(slices[-1], b, 0.0)

        more = paired_sums(counted, *entries, new)
        return sums[0] + more[0], sums[1] + more[1]

    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    zero = jnp.zeros((*shape[:-1], 1), arrays[0].dtype)
    return lax.fori_loop(0, _PARTS, add, (zero, zero))


def _part(part: Array, arrays: tuple[Array, ...]) -> tuple[Array, Array, list[Array]]:
    """Where a part of the last axis starts, its first new entry, and its entries of all arrays."""
    length = arrays[0].shape[-1]
    size = -(-length // _PARTS)
    first = part * size
    start = jnp.minimum(first, length - size)
    return start, first, [lax.dynamic_slice_in_dim(x, start, size, -1) for x in arrays]


def safe_exp_product(x: Array, log_weight: Array) -> Array:
    """``exp(log_weight)·x`` with 0 where the weight is 0, whatever ``x`` is."""
    present = log_weight > -jnp.inf
    x = jnp.where(present, x, jnp.zeros_like(x))
    return jnp.where(present, jnp.exp(log_weight) * x, jnp.zeros_like(x))


def lambert(s: Array, steps: int) -> Array:
    """``W(e^s)``, the ``w`` with ``w + log w = s``; 0 where it underflows.

    Its relative error is 1e-4 without steps and rounding after one.
    """
    low = s < 1
    x = jnp.exp(jnp.minimum(s, 1.0))
    high = jnp.maximum(s, 1.0)
    log_high = jnp.log(high)
    near = jnp.minimum(high, 1e15)
    # Rational functions of x, and of s and log s in s − log s + c·log s/s, fitted to W.
    top = jnp.where(
        low,
        x * (1 + x * (1.092215 + 0.046390 * x)),
        log_high * (0.324949 + 0.011409 * log_high + near),
    )
    bottom = jnp.where(
        low, 1 + x * (2.087803 + 0.682606 * x), near * (1.645665 - 0.599784 * log_high + near)
    )
    w = jnp.where(low, 0.0, high - log_high) + top / bottom
    for _ in range(steps):
        # Fritsch, Shafer and Crowley's step, of fourth order; far below, W(x) is x.
        deep = s < -40
        given = jnp.where(deep, 1.0, w)
        z = jnp.maximum(s, -40.0) - given - jnp.log(given)
        a = 2 * (1 + given) * (1 + given + (2 / 3) * z)
        w = jnp.where(deep, x, given * (1 + z / (1 + given) * (1 + z / (a - 2 * z))))
    return w


def log_lambert(s: Array) -> Array:
    """``log W(e^s)``, the ``x`` with ``e^x + x = s``."""
    near = (s > -20.0) & (s < jnp.inf)
    given = jnp.where(near, s, 0.0)
    w = lambert(given, 1)
    # log w loses digits around w = 1, s − w around large w
    log_w = jnp.where(w < 0.5, given - w, jnp.log(w))
    return jnp.where(near, log_w, jnp.where(s > 0, s, s - jnp.exp(jnp.minimum(s, 0))))


@jax.jit
def log_sum_exp(x: Array) -> Array:
    """Over the last axis, which stays; -inf, with derivatives of 0, where there is nothing."""
    top = lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    none = jnp.isneginf(top)
    shifted = x - jnp.where(none, jnp.zeros_like(top), top)
    total = jnp.exp(shifted).sum(-1, keepdims=True)
    log_total = jnp.log(jnp.where(none, jnp.ones_like(total), total))
    return jnp.where(none, top, top + log_total)


def working_dtype(dtype: Any) -> Any:
    """The type to compute in: 16-bit inputs are computed in float32."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def widest(*dtypes: Any) -> Any:
    """The float type that holds all of ``dtypes``, whatever promotion the user has configured."""
    result = jnp.dtype(dtypes[0])
    for dtype in map(jnp.dtype, dtypes[1:]):
        bits, most = jnp.finfo(dtype).bits, jnp.finfo(result).bits
        if bits == most and dtype != result:  # float16 and bfloat16
            result = jnp.dtype(jnp.float32)
        elif bits > most:
            result = dtype
    return result


def as_float(x: object) -> Float[Array, "..."]:
    """A JAX array of floating type: integers and booleans become the default float."""
    text = (str, bytes)
    if isinstance(x, text) or (
        isinstance(x, (list, tuple)) and any(isinstance(i, text) for i in x)
    ):
        raise TypeError(f"expected real numbers, got {x!r}")
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or array.dtype == jax.dtypes.float0:
        raise TypeError(f"expected real numbers, got dtype {array.dtype}")
    return array.astype(jnp.result_type(float))


def select(condition: Array, x: Array, y: Array | float) -> Array:
    """``where`` that keeps the shape and dtype of ``x``, whatever promotion the user has set."""
    return jnp.where(condition, x, jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape))
