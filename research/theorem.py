"""Theorem 3.1 of the AlignEZ paper: its three bounds beside the exact expectations and a simulation.

    python -m research.theorem --out artifacts/research    # theorem.json, theorem.md and theorem.svg; 5 s

The paper's noise model (section 3, appendix B): x has the coefficients α in an orthonormal basis of concepts. θ_help
and θ_harm have the constants β_help and γ_harm, and elsewhere normal noise, of standard deviation σ_align in the other
of these two components and σ_linguistic in the remaining d − 2. Both edits are applied to x at once. The noise is
symmetric, so products of different components have mean 0, and the expectation of each coefficient is a multiple of its
own α:

    E[A_help] / α_help = 1 + E[β_help² / T_help] − E[γ_help² / T_harm]
    E[A_harm] / α_harm = 1 + E[β_harm² / T_help] − E[γ_harm² / T_harm]
    E[A_i] / α_i       = 1 + E[β_i² / T_help] − E[γ_i² / T_harm]

with T = ⟨θ, θ⟩. The proof's first step for A_help drops the last term, which is negative: a lower bound must keep it.
`corrected` keeps it by its upper bound σ_align² / γ_harm².
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from research import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Vector = NDArray[np.float64]

#: Rows of one batch of the simulation.
_BATCH = 4096


@dataclass(frozen=True)
class Noise:
    """The noise model: σ_align, σ_linguistic, d, and the constants β_help and γ_harm."""

    align: float
    linguistic: float
    dimension: int = 64
    beta: float = 1.0
    gamma: float = 1.0

    @property
    def total(self) -> float:
        """Expected squared norm of the noise: σ_align² + (d − 2) σ_linguistic²."""
        return self.align**2 + (self.dimension - 2) * self.linguistic**2


@dataclass(frozen=True)
class Coefficients:
    """Values for A_help, A_harm and A_i, each divided by its α."""

    help: float
    harm: float
    other: float


def exact(noise: Noise) -> Coefficients:
    """The expectations (see above), by one integral each: 1/T = ∫ exp(−sT) ds has a closed mean over normal noise."""
    help_share, help_align, help_other = _shares(noise.beta, noise)
    harm_share, harm_align, harm_other = _shares(noise.gamma, noise)
    return Coefficients(1 + help_share - harm_align, 1 + help_align - harm_share, 1 + help_other - harm_other)


def bounds(noise: Noise) -> Coefficients:
    """The paper's bounds: E[A_help] / α_help from below, |E[A_harm] / α_harm| and |E[A_i] / α_i − 1| from above."""
    return Coefficients(
        1 + noise.beta**2 / (noise.beta**2 + noise.total),
        noise.align**2 / noise.beta**2 + noise.total / noise.gamma**2,
        noise.linguistic**2 * (1 / noise.beta**2 + 1 / noise.gamma**2),
    )


def corrected(noise: Noise) -> float:
    """A lower bound on E[A_help] / α_help that keeps the term which the proof drops."""
    return bounds(noise).help - noise.align**2 / noise.gamma**2


def simulate(noise: Noise, samples: int, seed: int = 0) -> tuple[Coefficients, Coefficients]:
    """Means over random directions and their standard errors, from edited vectors with all components.

    α is 1 for help, −1 for harm (the theorem assumes α_harm ≤ 0), and ±1 alternating for the others; A_i is i = 0.
    """
    random = np.random.default_rng(seed)
    d = noise.dimension
    alpha = np.where(np.arange(d) % 2, -1.0, 1.0)
    alpha[-2:] = 1.0, -1.0
    scale = np.full(d, noise.linguistic)
    scale[-2:] = noise.align
    found = []
    for start in range(0, samples, _BATCH):
        count = min(_BATCH, samples - start)
        towards, away = (random.standard_normal((count, d)) * scale for _ in range(2))
        towards[:, -2], away[:, -1] = noise.beta, noise.gamma
        edited = alpha + _projected(alpha, towards) - _projected(alpha, away)
        found.append(edited[:, [d - 2, d - 1, 0]] / alpha[[d - 2, d - 1, 0]])
    rows = np.concatenate(found)
    error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    return Coefficients(*map(float, rows.mean(axis=0))), Coefficients(*map(float, error))


def _projected(x: Vector, directions: Vector) -> Vector:
    """The projection of x (d,) onto each direction (n, d)."""
    shares: Vector = directions @ x / (directions**2).sum(axis=1)
    return directions * shares[:, None]


def _shares(constant: float, noise: Noise) -> tuple[float, float, float]:
    """E[c² / T], E[a² / T] and E[l² / T]: the constant's share, the σ_align component's and a linguistic one's."""
    s, step = _quadrature()
    a, ling = noise.align**2, noise.linguistic**2
    mean = np.exp(-s * constant**2) * (1 + 2 * s * a) ** -0.5 * (1 + 2 * s * ling) ** (-(noise.dimension - 2) / 2)

    def integral(values: Vector) -> float:
        return float((values * mean) @ step)

    return (
        constant**2 * integral(np.ones_like(s)),
        a * integral(1 / (1 + 2 * s * a)),
        ling * integral(1 / (1 + 2 * s * ling)),
    )


@functools.cache
def _quadrature() -> tuple[Vector, Vector]:
    """Points and weights of an integral over s from 0 to ∞, by s = t / (1 − t)."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    t = (nodes + 1) / 2
    return t / (1 - t), weights / 2 / (1 - t) ** 2


@dataclass(frozen=True)
class Result:
    """The theorem at one noise.

    Attributes:
        exact: expectations. simulated, error: means over `samples` directions and their standard errors.
        bounds: the paper's. corrected: see the function.
    """

    noise: Noise
    samples: int
    exact: Coefficients
    simulated: Coefficients
    error: Coefficients
    bounds: Coefficients
    corrected: float

    @classmethod
    def of(cls, noise: Noise, samples: int) -> Result:
        """Computes and simulates."""
        return cls(noise, samples, exact(noise), *simulate(noise, samples), bounds(noise), corrected(noise))


def table(results: Sequence[Result]) -> str:
    """The results as Markdown; ± is half the width of a 95 % interval."""
    head = ["σ_align", "σ_ling", "A_help", "simulated", "paper ≥", "corrected ≥", "A_harm", "simulated", "paper ≤",
            "\\|A_i − 1\\|", "simulated", "paper ≤"]  # fmt: skip
    lines = []
    for each in results:
        true, mean, error, bound = each.exact, each.simulated, each.error, each.bounds
        fails = "" if true.help >= bound.help else " **fails**"
        cells = [
            f"{each.noise.align:g}", f"{each.noise.linguistic:g}",
            f"{true.help:.4f}", _interval(mean.help, error.help), f"{bound.help:.4f}{fails}", f"{each.corrected:.4f}",
            f"{true.harm:.4f}", _interval(mean.harm, error.harm), f"{bound.harm:.4f}",
            f"{abs(true.other - 1):.4f}", _interval(mean.other - 1, error.other), f"{bound.other:.4f}",
        ]  # fmt: skip
        lines.append(cells)
    return figures.table(head, lines)


def _interval(mean: float, error: float) -> str:
    return f"{mean:.4f} ± {1.96 * error:.4f}"


def plot(linguistic: Sequence[float], dimension: int) -> Figure:
    """A_help and A_harm over σ_align: exact, the paper's bound (dashed), the corrected one (dotted)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.linspace(0.01, 0.6, 60)
    for i, sigma in enumerate(linguistic):
        noises = [Noise(float(step), sigma, dimension) for step in steps]
        color, label = f"C{i}", f"σ_ling {sigma:g}"
        left.plot(steps, [exact(noise).help for noise in noises], color=color, label=label)
        left.plot(steps, [bounds(noise).help for noise in noises], color=color, linestyle="--")
        left.plot(steps, [corrected(noise) for noise in noises], color=color, linestyle=":")
        right.plot(steps, [exact(noise).harm for noise in noises], color=color, label=label)
        right.plot(steps, [bounds(noise).harm for noise in noises], color=color, linestyle="--")
    left.set(title="E[A_help] / α_help, to stay above", xlabel="σ_align")
    right.set(title="E[A_harm] / α_harm, to stay below", xlabel="σ_align", ylim=(0, 1.5))
    left.legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None: the process's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--align", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4], help="σ_align")
    parser.add_argument("--linguistic", type=float, nargs="+", default=[0.0, 0.05, 0.1], help="σ_linguistic")
    parser.add_argument("--dimension", type=int, default=64, help="d (default %(default)s)")
    parser.add_argument("--samples", type=int, default=100_000, help="directions of the simulation")
    parser.add_argument("--out", type=Path, default=Path("artifacts/research"), help="folder (default %(default)s)")
    given = parser.parse_args(arguments)
    if given.dimension < 3 or given.samples < 2 or min(*given.align, *given.linguistic) < 0:
        parser.error("the dimension must be 3 or more, samples 2 or more, and no σ below 0")
    given.out.mkdir(parents=True, exist_ok=True)
    noises = [Noise(a, ling, given.dimension) for ling, a in itertools.product(given.linguistic, given.align)]
    results = [Result.of(noise, given.samples) for noise in noises]
    (given.out / "theorem.json").write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
    figures.publish(given.out, "theorem", table(results), plot(given.linguistic, given.dimension))


if __name__ == "__main__":
    main()
