"""Trait and coherence against the steering coefficient, the figure of the persona-vectors paper.

    python -m research.persona_vectors --model DIR --seeds 3 --out artifacts/research

The persona vector is the mean difference of the model's own answers under the persona and its opposite, added after one
block at every answer position (`caa`); beside it `distill` at λ = 1, whose coefficient is the dose of its edit.

Source: Chen et al., Persona Vectors (arXiv 2507.21509), section 3. Deviations: there, a language model rates trait and
coherence from 0 to 100. Here trait is 100 × the share of answers that the judge prefers to the bare model's (a tie
counts half, so the bare model has 50), and coherence 100 × exp(−gap), the gap in nats per token by which answers are
less likely under the persona than prompted answers, at least 0. One layer in the middle of the model, not a search.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignez_core.editing import EditPlan
from alignez_core.methods.base import Material
from alignez_core.methods.caa import mean_differences
from alignez_core.proof.arms import BARE, BARE_ARM, PROMPT, PROMPT_ARM, Arm
from alignez_core.proof.measures import bootstrap_interval, mean
from research.axbench import own_pairs
from research.baselines import sides
from research.figures import publish, table
from research.lab import Lab, ModelSource, caption, fixed, pair_samples, rows_of
from research.personas import Styled, add_personas, by_query, each_persona
from research.runner import Row, parser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VECTOR, DISTILL = "persona vector", "distill"
COEFFICIENTS = {VECTOR: (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), DISTILL: (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)}
_DEPTH = 0.5


def options() -> argparse.ArgumentParser:
    """The command line."""
    return add_personas(parser(__doc__, "persona_vectors"))


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows, then the table and the plot."""
    rows, key = each_persona(args, "persona_vectors", _row), ModelSource.of(args.model).key
    names = [PROMPT, *(f"{arm} × {c:g}" for arm, at in COEFFICIENTS.items() for c in at)]
    lines = []
    for name in names:
        found = [row["arms"][name] for row in rows]
        traits = trait(rows, name)
        low, high = bootstrap_interval(traits)
        coherence = mean([each["coherence"] for each in found])
        repeats = mean([each["repetition"] for each in found])
        style = mean([each["style"] - row["arms"][BARE]["style"] for each, row in zip(found, rows, strict=True)])
        lines.append([
            name, len(traits), f"{mean(traits):.0f} ({low:.0f} to {high:.0f})", f"{coherence:.0f}", f"{repeats:.2f}",
            f"{style:+.2f}",
        ])  # fmt: skip
    head = ["arm × coefficient", "n", "trait", "coherence", "repetition", "change of style"]
    personas = len({row["persona"] for row in rows})
    text = f"{caption(args, f'{personas} personas')}\n\n{table(head, lines)}"
    publish(args.out, f"persona_vectors-{key}", text, _plot(rows, key))


def trait(rows: Sequence[Row], arm: str) -> list[float]:
    """The trait of each query of each persona, 0 to 100, a mean over seeds."""
    return by_query(rows, lambda row: [50.0 + 50.0 * verdict for verdict in row["arms"][arm]["over_bare"]])


def _row(lab: Lab, styled: Styled) -> Row:
    group, pairs = next(iter(lab.sets.slices)), own_pairs(lab)
    samples = pair_samples(pairs, lab.persona)
    help_, harm = (dict(enumerate(side)) for side in sides(lab, pairs))
    layer = int(_DEPTH * lab.engine.info.n_layers)
    vector = mean_differences(Material(lab.engine, lab.config, samples, help=help_, harm=harm), [layer])[layer]
    plan = lab.fit("distill", contrast=1.0, contrast_form="full").plan()
    assert plan is not None  # distill edits
    arms = []
    for coefficient in COEFFICIENTS[VECTOR]:
        added = EditPlan.additive([layer], vector[None], coefficient)
        arms.append(Arm(f"{VECTOR} × {coefficient:g}", plan=fixed(added)))
    arms += [Arm(f"{DISTILL} × {dose:g}", plan=fixed(plan.scaled(dose))) for dose in COEFFICIENTS[DISTILL]]
    judged = rows_of(lab.judged(arms, group))
    texts = lab.answers([BARE_ARM, PROMPT_ARM, *arms], [group])[group]
    for name, found in judged.items():
        found["style"] = round(styled.mean_style(list(texts[name].values())), 4)
        found["coherence"] = round(100 * math.exp(-max(0.0, found["coherence"])), 2)
    return {"arms": judged, "layer": layer}


def _plot(rows: Sequence[Row], key: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    plots = figure.subplots(1, 2)
    for arm, coefficients in COEFFICIENTS.items():
        names = [f"{arm} × {c:g}" for c in coefficients]
        traits = [50.0, *(mean(trait(rows, name)) for name in names)]
        coherence = [mean([row["arms"][name]["coherence"] for row in rows]) for name in (BARE, *names)]
        for plot, values in zip(plots, (traits, coherence), strict=True):
            plot.plot([0, *coefficients], values, marker="o", label=arm)
    prompted = mean(trait(rows, PROMPT))
    plots[0].axhline(prompted, linestyle="--", color="grey", label="persona as a prompt")
    plots[0].set(title=f"{key}: trait", xlabel="coefficient", ylim=(0, 102))
    plots[1].set(title="coherence", xlabel="coefficient", ylim=(0, 102))
    plots[0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(options().parse_args())
