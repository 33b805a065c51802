"""A score that predicts from a fit alone whether self-alignment will work, an open end of the paper's section 6.

    python -m research.predictor --model DIR --models DIR DIR --out artifacts/research

For models × personas × methods: diagnostics of the fit, made without any answer of the edited model, beside the net win
that the judge then measures over the bare model and the change of a measure of style that no model judges. The result
is the rank correlation of each diagnostic with both.

| diagnostic | is, on the queries that were fitted on |
|---|---|
| shift | nats per token by which answers under the persona are likelier under it than without it |
| contrast | the same against the opposite persona, each token clipped at half a nat |
| effect | mean ÷ standard deviation of contrast over answers |
| separation | 1 − mean |cos(θ_help, θ_harm)| of the edited layers (alignez) |
| energy | mean share of the first singular value's square (alignez) |
| explained | mean share of the squared gap that the edit fits, on queries that were not fitted on (distill) |
| score | √(contrast · separation) for alignez, √(contrast · explained) for distill |
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_core.engines.base import ScoreRequest
from alignez_core.fit import FittedProfile
from alignez_core.proof.arms import BARE, BARE_ARM
from alignez_core.proof.judges import Answered
from alignez_core.proof.measures import bootstrap_interval, mean
from alignez_core.spec.limits import MethodName
from research.figures import publish, signed, table
from research.lab import Lab, ModelSource, rows_of
from research.personas import Styled, add_personas, each_persona
from research.runner import Row, parser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Method → settings without a choice, so that a fit's diagnostics are all that is known of it.
FITS: dict[MethodName, dict[str, Any]] = {"alignez": {}, "distill": {"contrast": 1.0, "contrast_form": "full"}}
DIAGNOSTICS = ("shift", "contrast", "effect", "separation", "energy", "explained", "score")
TARGETS = {"net": "net win", "style": "change of style"}
#: Nats per token at which one token's contrast is clipped, as the gate does it.
_CLIP = 0.5
_RESAMPLES = 2000


def options() -> argparse.ArgumentParser:
    """The command line; several models are measured one after the other."""
    made = add_personas(parser(__doc__, "predictor"))
    made.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="further models of the same figure")
    return made


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows of all models, then the table and the plot."""
    models, points = [args.model, *args.models], []
    for model in models:
        each = copy.copy(args)
        each.model, each.models = model, []
        key = ModelSource.of(model).key
        for row in each_persona(each, "predictor", _row):
            points += [
                {"model": key, "persona": row["persona"], "method": method, **row["common"], **found}
                for method, found in row["methods"].items()
            ]
    name = "predictor" if len(models) > 1 else f"predictor-{ModelSource.of(args.model).key}"
    publish(args.out, name, markdown(points, args.seeds), _plot(points))


def _row(lab: Lab, styled: Styled) -> Row:
    """Diagnostics and measurements of one persona: `{"common": …, "methods": {method: …}}`."""
    common = _common(lab)
    group = next(iter(lab.sets.slices))
    profiles = {method: lab.fit(method, **settings) for method, settings in FITS.items()}
    arms = [lab.arm(method, profile) for method, profile in profiles.items()]
    texts = lab.answers([BARE_ARM, *arms], [group])[group]
    judged = rows_of(lab.judged(arms, group))
    style = {name: styled.mean_style(list(found.values())) for name, found in texts.items()}
    methods = {}
    for method, profile in profiles.items():
        found = _of_fit(profile)
        share = found.get("separation", found.get("explained", 0.0))
        found["score"] = round(math.sqrt(max(0.0, common["contrast"]) * max(0.0, share)), 5)
        found["net"] = round(mean(judged[method][f"over_{BARE}"]), 4)
        found["style"] = round(style[method] - style[BARE], 4)
        methods[method] = found
    return {"n": len(lab.samples[group]), "common": common, "methods": methods, "style_bare": style[BARE]}


def _common(lab: Lab) -> dict[str, float]:
    """The diagnostics that do not depend on the method."""
    answers = lab.own_answers("help")
    answered = [Answered(s, answers[s.index]) for s in lab.samples["fit"] if answers[s.index].strip()]
    contrast = lab.arena.likelihoods.contrast(answered, _CLIP)
    under = lab.arena.likelihoods.per_token(answered, "help")
    form = lab.engine.prompt_format
    plain = lab.engine.score([ScoreRequest(form.wrap(a.sample.query), a.text) for a in answered])
    deviation = float(np.std(contrast)) if contrast else 0.0
    return {
        "shift": round(mean(under) - mean([float(row.mean()) for row in plain]), 5),
        "contrast": round(mean(contrast), 5),
        "effect": round(mean(contrast) / deviation, 4) if deviation else 0.0,
    }


def _of_fit(profile: FittedProfile) -> dict[str, float]:
    """The diagnostics of a method's own fit."""
    found = profile.diagnostics
    if profile.method == "alignez":
        edited = profile.layers
        return {
            "separation": round(1 - mean([abs(found["cosine_help_harm"][layer]) for layer in edited]), 4),
            "energy": round(mean([found["energy_help"][layer] for layer in edited]), 4),
        }
    return {"explained": round(mean(list(found["explained"].values())), 4)}


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: Pearson's of the ranks, ties at their mean rank; nan where one side has one value only."""
    x, y = _ranks(np.asarray(a, dtype=np.float64)), _ranks(np.asarray(b, dtype=np.float64))
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: np.ndarray = ((2 * last - counts - 1) / 2)[inverse]
    return ranks


def with_spread(a: Sequence[float], b: Sequence[float]) -> str:
    """The rank correlation with its 95 % bootstrap interval over points."""
    points = np.random.default_rng(0).integers(0, len(a), size=(_RESAMPLES, len(a)))
    x, y = np.asarray(a), np.asarray(b)
    drawn = [rank_correlation(x[chosen].tolist(), y[chosen].tolist()) for chosen in points]
    kept = [value for value in drawn if not math.isnan(value)]
    if not kept:
        return "–"
    low, high = np.percentile(kept, [2.5, 97.5])
    return signed(rank_correlation(a, b), float(low), float(high))


def markdown(points: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """The correlations by method, and every model's and method's means."""
    lines = []
    for target, title in TARGETS.items():
        for method in [*FITS, "both"]:
            chosen = [p for p in points if method in ("both", p["method"])]
            for diagnostic in DIAGNOSTICS:
                found = [p for p in chosen if diagnostic in p]
                if len(found) == len(chosen) and found:
                    values = [p[diagnostic] for p in found], [p[target] for p in found]
                    lines.append([title, method, diagnostic, len(found), with_spread(*values)])
    means = []
    for model, method in dict.fromkeys((p["model"], p["method"]) for p in points):
        chosen = [p for p in points if (p["model"], p["method"]) == (model, method)]
        nets, styles = ([p[target] for p in chosen] for target in TARGETS)
        shown = (signed(mean(values), *bootstrap_interval(values)) for values in (nets, styles))
        diagnostics = (f"{mean([p[d] for p in chosen]):.3f}" if d in chosen[0] else "" for d in DIAGNOSTICS)
        means.append([model, method, len(chosen), *shown, *diagnostics])
    return "\n\n".join([
        f"Points are personas × seeds ({seeds}) of each model; intervals are 95 %, over points.",
        table(["target", "method", "diagnostic", "points", "rank correlation"], lines),
        table(["model", "method", "points", "net win over bare", "change of style", *DIAGNOSTICS], means),
    ])  # fmt: skip


def _plot(points: Sequence[Mapping[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    plots = figure.subplots(1, len(FITS))
    for plot, method in zip(plots, FITS, strict=True):
        for model in dict.fromkeys(p["model"] for p in points):
            chosen = [p for p in points if (p["model"], p["method"]) == (model, method)]
            plot.scatter([p["score"] for p in chosen], [p["net"] for p in chosen], label=model, s=16)
        plot.set(title=method, xlabel="score of the fit", ylabel="net win over the base model", ylim=(-1.05, 1.05))
        plot.axhline(0, color="black", linewidth=0.8)
    plots[0].legend(frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    run(options().parse_args())
