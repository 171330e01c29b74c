"""Draws the README's animation, β through the flip: `python docs/make_gif.py .github/flip.gif`."""

import sys

import matplotlib.style
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

import kltarget as kt
from kltarget import plot, tasks

FRAMES, SECONDS = 40, 5.0
COLORS = ("#0072b2", "#d97b00")


def main(path: str) -> None:
    """Two modes trade places while β falls and rises again."""
    task = tasks.load("bimodal")
    there = np.geomspace(1.0, 0.03, FRAMES // 2 + 1)
    betas = np.concatenate([there, there[-2:0:-1]])
    probs = np.asarray(kt.solve(task.objective(betas)).probs)
    order = np.argsort(betas)
    masses = [probs[:, task.modes == mode].sum(-1) for mode in (0, 1)]
    flip = float(kt.flip_beta(task.objective(1.0), 0, 1, modes=task.modes))
    with matplotlib.style.context([plot.STYLE, {"font.size": 11}]):
        figure = Figure(figsize=(8.0, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
        left.plot(np.exp(task.log_ref), color="#4a4f57", lw=1.5, drawstyle="steps-mid")
        left.text(25, 0.091, "reward 0.75", ha="center", color=COLORS[0])
        left.text(75, 0.091, "reward 1", ha="center", color=COLORS[1])
        left.text(40, 0.045, "reference", color="#4a4f57")
        colors = [(*COLORS, "#8b9199")[mode] for mode in task.modes]
        bars = left.bar(range(100), probs[0], color=colors, width=0.9)
        left.set(ylim=(0, 0.1), xlabel="outcome", ylabel="probability under the target")
        for mass, color in zip(masses, COLORS, strict=True):
            right.plot(betas[order], mass[order], color=color)
        right.axvline(flip, color="#8b9199", lw=0.9, ls=":")
        right.text(flip * 1.1, 0.96, f"flip at {flip:.3f}", va="top")
        dots = right.scatter([1, 1], [0, 0], c=COLORS, s=60, zorder=4)
        right.set(xscale="log", ylim=(0, 1), xlabel="β", ylabel="probability of the mode")

        def draw(k: int) -> None:
            for bar, p in zip(bars, probs[k], strict=True):
                bar.set_height(p)
            dots.set_offsets([(betas[k], mass[k]) for mass in masses])
            left.set_title(f"reverse KL, β = {betas[k]:.2f}")

        animation = FuncAnimation(figure, draw, frames=len(betas))
        animation.save(path, writer=PillowWriter(fps=len(betas) / SECONDS), dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
