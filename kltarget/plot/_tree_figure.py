"""The figure of a distribution over short token sequences."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget._core.words import percent
from kltarget.plot import _style as look
from kltarget.plot._paths import as_drawn
from kltarget.spaces import SequenceSpace
from kltarget.targets import DiscreteTarget
from kltarget.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LEAVES = 40
_LARGEST_NODE = 260.0
_WIDEST_EDGE = 5.0


def tree(
    data: Task | str | os.PathLike[str] | DiscreteTarget | ArrayLike,
    *,
    space: SequenceSpace | None = None,
    alphabet: str | tuple[str, ...] | None = None,
    least: float = 0.0,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws a distribution over token sequences as the tree of their prefixes.

    A node is a prefix, its area the probability of starting with it; the width of a branch is the
    probability of the token given the prefix. Leaves carry their sequence and its probability.

    Args:
        data: log-probabilities ``[V**L]`` of all sequences, a target of that many outcomes without
            batch axes, or a task over sequences or its name, whose reference is drawn.
        space: the sequences; a task has its own.
        alphabet: the tokens' characters: one string, or a tuple of one string per position.
            Default: those of the task, else digits.
        least: probability that a sequence must exceed to be drawn. What is left out still counts
            in the areas and widths of what is drawn.
        ax: axes to draw into. Default: those of a new figure, as high as it takes.
        **style: properties of the nodes.

    Returns:
        The axes; ``ax.figure`` is the figure. What is impossible has no branch, and nothing follows
        an end of sequence.

    Raises:
        ValueError: no space is given, there are more than 40 leaves, or ``data`` does not fit.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget import plot
        >>> log_probs = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
        >>> ax = plot.tree(log_probs, space=kt.SequenceSpace(2, 2), alphabet="ab")
        >>> [text.get_text() for text in ax.texts]
        ['a', 'b', 'aa  0.5', 'ab  0.25', 'ba  0.15', 'bb  0.1']
    """
    data = as_drawn(data)
    if isinstance(data, Task):
        alphabet = data.alphabet if alphabet is None else alphabet
        space, data = data.space, data.log_ref
    if space is None:
        raise ValueError("space is missing: give the SequenceSpace of the outcomes")
    spelling = _spelling(space, alphabet)
    log_probs = np.asarray(data.log_probs if isinstance(data, DiscreteTarget) else data)
    if log_probs.ndim != 1:
        raise ValueError(f"data has batch shape {log_probs.shape[:-1]}: choose one distribution")
    nodes = _nodes(space, log_probs, least)
    leaves = [node for node in nodes if not node.children]
    depth = max(len(node.tokens) for node in nodes)
    with look.drawing(ax, figsize=(5.6, max(2.4, 0.5 + 0.21 * len(leaves)))) as ax:
        for node in nodes:
            if node.parent is not None:
                _branch(ax, node.parent, node)
        x, y, mass = np.array([(len(node.tokens), node.height, node.mass) for node in nodes]).T
        options: dict[str, Any] = {"color": look.color(0), "lw": 0, "zorder": 3, **style}
        ax.scatter(x, y, _LARGEST_NODE * mass, **options)
        for node in sorted(nodes[1:], key=lambda node: (len(node.tokens), node.height)):
            _name(ax, node, spelling)
        ax.set(xticks=range(depth + 1), yticks=[], xlabel=_tokens(leaves, log_probs))
        ax.set(xlim=(-0.15, depth + 0.12), ylim=(len(leaves) - 0.4, -0.6))
        ax.grid(False)
        ax.spines[["left", "top", "right"]].set_visible(False)
    return ax


def _tokens(leaves: list[_Node], log_probs: np.ndarray) -> str:
    """What the axis is called, and how much is left out if anything is."""
    possible = int(np.isfinite(log_probs).sum())
    if len(leaves) == possible:
        return "tokens"
    mass = percent(math.log(sum(leaf.mass for leaf in leaves)))
    return f"tokens of {len(leaves)} of {possible:,} sequences, {mass}"


@dataclasses.dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]
    mass: float
    parent: _Node | None
    children: list[_Node] = dataclasses.field(default_factory=list)
    height: float = 0.0


def _spelling(space: SequenceSpace, alphabet: str | tuple[str, ...] | None) -> list[list[str]]:
    """What each token is called at each position."""
    if alphabet is None:
        return [[str(token) for token in range(size)] for size in space.sizes]
    each = alphabet if isinstance(alphabet, tuple) else (alphabet,) * space.length
    if tuple(map(len, each)) != space.sizes:
        raise ValueError(f"alphabet {alphabet!r} does not spell the tokens of {space}")
    return [list(letters) for letters in each]


def _nodes(space: SequenceSpace, log_probs: np.ndarray, least: float) -> list[_Node]:
    """The prefixes of all sequences above the least mass, each before its children."""
    masses = [np.exp(np.asarray(x, float)) for x in space.prefix_log_masses(log_probs)]
    shown = np.flatnonzero(masses[-1] > least)
    if not shown.size:
        raise ValueError(f"no sequence has a probability above {least:g}: lower least=")
    if shown.size > _MOST_LEAVES:
        enough = np.sort(masses[-1])[-_MOST_LEAVES - 1] * 1.05
        raise ValueError(
            f"{shown.size:,} sequences have a probability above {least:g}, and at most "
            f"{_MOST_LEAVES} can be drawn: raise least= to {enough:.2g}, or draw shorter sequences"
        )
    root = _Node((), float(masses[0][0]), None)
    nodes: dict[tuple[int, ...], _Node] = {(): root}
    sequences = np.stack(np.unravel_index(shown, space.sizes), -1).tolist()
    for height, tokens in enumerate(sequences):
        node = root
        for t in range(1, len(tokens) + 1):
            prefix = tuple(tokens[:t])
            if prefix not in nodes:
                mass = float(masses[t][np.ravel_multi_index(prefix, space.sizes[:t])])
                nodes[prefix] = _Node(prefix, mass, node)
                node.children.append(nodes[prefix])
            node = nodes[prefix]
            if prefix[-1] == space.eos:
                break
        node.height = float(height)
    found = list(nodes.values())
    for node in sorted(found, key=lambda node: -len(node.tokens)):
        if node.children:
            node.height = float(np.mean([child.height for child in node.children]))
    return found


def _branch(ax: Axes, parent: _Node, child: _Node) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    x, y = len(parent.tokens), parent.height
    points = [(x, y), (x + 0.5, y), (x + 0.5, child.height), (x + 1, child.height)]
    curve = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    width = max(_WIDEST_EDGE * child.mass / parent.mass, 0.2)
    ax.add_patch(PathPatch(curve, fc="none", ec=look.color(5), lw=width, capstyle="butt", zorder=2))


def _name(ax: Axes, node: _Node, spelling: list[list[str]]) -> None:
    word = [spelling[t][token] for t, token in enumerate(node.tokens)]
    separator = "" if all(len(letters) == 1 for letters in word) else " "
    radius = 0.5 * float(np.sqrt(_LARGEST_NODE * node.mass))
    # Above the end of its branch, or beside the leaf.
    text, offset, sides = word[-1], (-radius - 3, 1.5), {"ha": "right", "va": "bottom"}
    if not node.children:
        text = f"{look.short_label(separator.join(word))}  {look.short_number(node.mass, 2)}"
        offset, sides = (radius + 4, 0.0), {"ha": "left"}
    options = {"color": look.ink(), "annotation_clip": False, "zorder": 4, **sides}
    look.note(ax, text, (len(node.tokens), node.height), offset, **options)
