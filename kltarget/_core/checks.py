"""Checks of arguments, and the errors that name the argument, the shapes and the mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from kltarget._core.numerics import as_float, log_sum_exp, widest, working_dtype


class ArgumentError(ValueError):
    """What is wrong with an argument.

    ``{}`` in the message stands for the argument and its value, which Python and the command line
    spell differently.

    Args:
        message: what is wrong, a line.
        argument: name of the argument; none if the error is about something else.
        value: its value, or one to give.
        python: how Python spells both, ``argument=value`` by default.

    Attributes:
        argument: its name.
    """

    def __init__(
        self, message: str, argument: str = "", value: object = None, python: str | None = None
    ) -> None:
        if python is None:
            python = argument if value is None else f"{argument}={value!r}"
        super().__init__(message.replace("{}", python, 1) if argument else message)
        self.argument, self._message, self._value = argument, message, value

    def add(self, more: str) -> None:
        """Says more at the end of the message."""
        self.args = (f"{self.args[0]}{more}",)
        self._message += more

    def with_option(self, option: str) -> str:
        """The message for a command line, where an option sets the argument."""
        given = option if self._value is None else f"{option} {self._value}"
        return self._message.replace("{}", given, 1)


def traced(*arrays: Any) -> bool:
    """Whether any of the arrays has no concrete values."""
    return any(isinstance(x, Tracer) for x in arrays)


def at_once(*trees: Any) -> contextlib.AbstractContextManager[Any]:
    """Computes arrays from concrete ones, whichever trace is under way: those that are kept."""
    if traced(*jax.tree.leaves(trees)):
        return contextlib.nullcontext()
    return jax.ensure_compile_time_eval()


def float_argument(x: object, name: str) -> Array:
    """An argument as an array of floats, or an error that names it."""
    try:
        return as_float(x)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


@contextlib.contextmanager
def worded(message: str) -> Iterator[None]:
    """Says what a ``ValueError`` inside means, for instance of shapes that do not broadcast."""
    try:
        yield
    except ValueError:
        raise ValueError(message) from None


def broadcasts_to(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to another one and leaves that as it is."""
    try:
        return np.broadcast_shapes(shape, full) == full
    except ValueError:
        return False


def common_dtype(given: Iterable[Any], arrays: Iterable[Array]) -> Any:
    """The widest float type among the array arguments; Python numbers follow it."""
    typed = [
        x.dtype
        for raw, x in zip(given, arrays, strict=True)
        if not isinstance(raw, (int, float, list, tuple)) or isinstance(raw, np.generic)
    ]
    return widest(*typed) if typed else jnp.result_type(float)


def float_arguments(**given: Any) -> dict[str, Array]:
    """Arguments as arrays of the widest float type among them, or an error that names one."""
    arrays = {name: float_argument(x, name) for name, x in given.items()}
    dtype = common_dtype(given.values(), arrays.values())
    return {name: x.astype(dtype) for name, x in arrays.items()}


def require_outcomes(x: Array, name: str) -> None:
    """An error if an argument has no last axis of outcomes."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} needs a last axis of at least one outcome, got shape {x.shape}")


def mass_tolerance(dtype: Any) -> float:
    """How far a row of reference masses may be from 1: rounding of its logarithms, generously."""
    return float(8 * jnp.finfo(dtype).eps ** 0.5)


def require_normalized(**log_probs: Array) -> None:
    """An error that names an argument whose rows, outside a trace, are not distributions.

    Rows with NaN in them, such as those of a failed solution, pass.
    """
    for name, x in log_probs.items():
        if traced(x) or not x.is_fully_addressable:
            continue
        dtype = working_dtype(x.dtype)
        # What is small is summed where it costs no compilation.
        numbers = np.asarray(x, dtype) if x.size <= _SMALL else x.astype(dtype)
        with np.errstate(over="ignore"):
            total = np.asarray((np if x.size <= _SMALL else jnp).exp(numbers).sum(-1))
        far = np.abs(total - 1) > mass_tolerance(x.dtype)
        if far.any():
            at = first_index(far)
            raise ValueError(not_normalized(name, np.asarray(numbers[at]), total[at], at))


def log_probs_in(dtype: Any, **given: Any) -> Array:
    """One argument in a float type; where its own has 16 bits, rows are normalised anew.

    Only what rounding explains: rows that never had mass 1 are left for their check.
    """
    ((name, x),) = given.items()
    narrow = float_argument(x, name)
    log_probs = narrow.astype(dtype)
    if working_dtype(narrow.dtype) == narrow.dtype or not log_probs.ndim:
        return log_probs
    total = log_sum_exp(log_probs)
    rounding = jnp.abs(jnp.expm1(total)) <= mass_tolerance(narrow.dtype)
    return log_probs - jnp.where(rounding, total, 0.0)


def not_normalized(name: str, row: np.ndarray, mass: Any, at: tuple[int, ...]) -> str:
    """What is wrong with a row of log-probabilities, and what would mend it."""
    probabilities = (row >= 0).all() and abs(row.sum() - 1) <= mass_tolerance(row.dtype)
    mend = f"pass kltarget.normalize({name})"
    if probabilities:
        mend = f"these look like probabilities: take jnp.log({name})"
    return f"{name} is not normalised: its masses sum to {mass:.10g}{at_index(at)}, not 1; {mend}"


_SMALL = 2**16


def first_index(bad: Any) -> tuple[int, ...]:
    """Where the first fault is."""
    return tuple(int(i) for i in np.argwhere(bad)[0])


def at_index(index: tuple[int, ...]) -> str:
    """The place of a fault in words; nothing for a scalar."""
    if not index:
        return ""
    return f" at index {index[0] if len(index) == 1 else index}"


def raise_first(name: str, x: Any, bad: Any, rule: str) -> None:
    """An error that names the argument and the first place that breaks the rule, if it is known."""
    if not traced(bad) and np.asarray(bad).any():
        at = first_index(bad)
        got = "" if x is None else f", got {np.asarray(x)[at]}"
        raise ValueError(f"{name} {rule}{got}{at_index(at)}")


def positive(name: str, value: int, least: int = 1) -> int:
    """``value``, or an error that names it if it is no whole number or not large enough."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")
    return value


def positive_if_given(name: str, value: int | None, least: int = 1) -> int | None:
    """As :func:`positive`, of what may be None."""
    return None if value is None else positive(name, value, least)


def integer_rows(x: Any, name: str, wanted: dict[str, int], axes: int) -> Array:
    """Integers whose last axis has one entry of each kind, such as states and actions, as an array.

    Args:
        x: as a caller gave it, ``[..., K]``.
        name: of the argument.
        wanted: what the K entries are called, and how many there are of each.
        axes: how many axes it has at least.

    Raises:
        TypeError: what is no integer.
        ValueError: another shape; outside a trace, numbers out of range.
    """
    rows = x if traced(x) else np.asarray(x)
    if not (traced(rows) or rows.size):
        rows = rows.astype(np.int32)
    if not jnp.issubdtype(rows.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {rows.dtype}")
    if rows.ndim < axes or rows.shape[-1] != len(wanted):
        kinds = ", ".join(wanted)
        raise ValueError(
            f"{name} has shape {rows.shape}: it needs {axes} axes or more, the last of {kinds}"
        )
    if not traced(rows):
        for i, (kind, size) in enumerate(wanted.items()):
            column = rows[..., i]
            outside = (column < 0) | (column >= size)
            raise_first(name, column, outside, f"must have {kind}s from 0 to {size - 1}")
    return jnp.asarray(rows)


def typed_key(key: Any) -> Array:
    """Random keys in the new style, whichever was given.

    Raises:
        TypeError: what is no random key of JAX.
    """
    try:
        keys = jnp.asarray(key)
        old = not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(keys) if old else keys
    except (TypeError, ValueError):
        raise TypeError(
            f"key must be a random key of JAX such as jax.random.key(0), got {key!r}"
        ) from None


def concrete_labels(modes: Any, num_outcomes: int) -> np.ndarray:
    """Labels of modes as a caller gave them, checked, shape ``[A]``."""
    if traced(modes):
        raise TypeError(
            "modes must be concrete labels, not traced ones: they decide the shape of the result; "
            "close over them instead of passing them through jit or vmap"
        )
    labels = np.asarray(modes)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"modes must be integer labels, got dtype {labels.dtype}")
    if labels.shape != (num_outcomes,):
        raise ValueError(
            f"modes has shape {labels.shape}, but there are {num_outcomes} outcomes: "
            f"give one label per outcome, shape ({num_outcomes},)"
        )
    if not (labels >= 0).any():
        raise ValueError("modes has no label of 0 or more: every outcome is in no mode")
    return labels
