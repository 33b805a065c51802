"""Figure 4 of the AlignEZ paper: K, L, and the cosines of the directions.

    python -m research.figure4 --model DIR --data DIR --seeds 3 --out artifacts/research

(a) K neighbours at L = 5 and (b) L layers at K = 10: net win over the base model. (c) the mean |cosine| of θ_help
between the chosen layers as their number grows, and |cos(θ_help, θ_harm)| of each layer. Directions have no sign that
means anything (PAPER, A.3), so cosines are absolute.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from alignez_core.methods.directions import fit_directions
from alignez_core.methods.layer_selection import select_layers
from alignez_core.proof.arms import Arm
from research.figures import NetWin, publish, table
from research.lab import Lab, ModelSource, caption
from research.runner import Row, parser
from research.slices import compare, groups_of, mean_of, net_win

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The paper's grids.
NEIGHBORS = (3, 5, 10, 15, 20, 25, 30)
LAYERS = (1, 3, 5, 7, 10, 15, 20, 25, 30)
_K, _L = 10, 5


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__, "figure4")
    made.add_argument("--neighbors", type=int, nargs="+", default=list(NEIGHBORS), help="K (default: %(default)s)")
    made.add_argument("--layers", type=int, nargs="+", default=list(LAYERS), help="L (default: %(default)s)")
    made.set_defaults(fit_queries=32)
    return made


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows, then the tables and the plot."""
    rows = compare(args, "figure4", partial(_arms, args))
    group, key = groups_of(rows)[-1], ModelSource.of(args.model).key
    lines, nets = [], dict[str, NetWin]()
    for name in (name for name in rows[0]["arms"] if "=" in name):
        nets[name] = net = net_win(rows, group, name)
        repeats, coherence = (mean_of(rows, group, name, measure) for measure in ("repetition", "coherence"))
        lines.append([name, net.queries, net, f"{coherence:+.2f}", f"{repeats:.2f}"])
    cosines = rows[0]["about"]["cosines"]
    parts = [
        caption(args),
        table(["setting", "n", "net win over bare", "coherence", "repetition"], lines),
        "Seed 0. " + _span("Mean |cos| of θ_help between chosen layers, by their number", cosines["between"]),
        _span("|cos(θ_help, θ_harm)| by layer", cosines["help_harm"]),
    ]
    publish(args.out, f"figure4-{key}", "\n\n".join(parts), _plot(nets, cosines, key))


def _arms(args: argparse.Namespace, lab: Lab, slices: Sequence[str]) -> tuple[list[Arm], Row]:
    """The arms "K=…" and "L=…", fitted on the same characteristics, and the cosines of their directions."""
    n_layers, n_queries = lab.engine.info.n_layers, len(lab.samples["fit"])
    arms = []
    for k in (k for k in args.neighbors if k <= n_queries):
        arms.append(lab.arm(f"K={k}", lab.fit("alignez", neighbors=k, layers=min(_L, n_layers))))
    for count in (count for count in args.layers if count <= n_layers):
        arms.append(lab.arm(f"L={count}", lab.fit("alignez", neighbors=_K, layers=count)))
    everywhere = lab.fit("alignez", layers="all").neighbor_rows
    assert everywhere is not None  # alignez keeps its readings
    found = fit_directions(everywhere.help, everywhere.harm)
    cosines = (found.theta_help @ found.theta_help.T).abs()
    between = []
    for count in range(2, n_layers + 1):
        chosen = list(select_layers(found, count, "consistency").layers)
        part = cosines[chosen][:, chosen]
        between.append(round(float((part.sum() - count) / (count * (count - 1))), 4))
    help_harm = [round(abs(float(value)), 4) for value in found.cosine]
    return arms, {"cosines": {"between": between, "help_harm": help_harm}}


def _span(title: str, values: Sequence[float]) -> str:
    return f"{title}: {', '.join(f'{value:.2f}' for value in values)}."


def _plot(nets: dict[str, NetWin], cosines: Row, key: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    plots: Sequence[Axes] = figure.subplots(1, 4)
    for plot, letter in zip(plots, "KL", strict=False):
        found = {int(name[2:]): net for name, net in nets.items() if name.startswith(f"{letter}=")}
        middle = [net.net for net in found.values()]
        reach = [[net.net - net.low for net in found.values()], [net.high - net.net for net in found.values()]]
        plot.errorbar(list(found), middle, yerr=reach, marker="o", capsize=2)
        plot.axhline(0, color="black", linewidth=0.8)
        plot.set(title=f"{key}: net win by {letter}", xlabel=letter, ylim=(-1.05, 1.05))
    plots[2].plot(range(2, len(cosines["between"]) + 2), cosines["between"])
    plots[2].set(title="mean |cos| of θ_help", xlabel="chosen layers", ylim=(0, 1.05))
    plots[3].plot(cosines["help_harm"])
    plots[3].set(title="|cos(θ_help, θ_harm)|", xlabel="layer", ylim=(0, 1.05))
    return figure


if __name__ == "__main__":
    run(options().parse_args())
