"""Figure 3 of the AlignEZ paper, on figure 1's axis of cost: DPO on shares of a preference set, alone and with edits.

    python -m research.figure3 --model DIR --data DIR --shares 1 5 10 25 --out artifacts/research

For each share the base model is trained (`research.dpo`), and three arms answer the queries of all slices: the trained
model, the same with AlignEZ, and with `distill`, both fitted on the trained model. Share 0 is the untrained model. All
are compared with the untrained bare model, by its own judge. Seconds and tokens are those from nothing to the first
answer: training and fitting, without the persona's queries and pairs, which somebody has to write.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import FittedProfile
from alignez_core.proof.arms import BARE, BARE_ARM
from alignez_core.proof.measures import mean
from alignez_core.spec.limits import MethodName
from alignez_core.spec.persona import GivenPair
from alignez_core.spec.samples import Sample
from research.baselines import with_room
from research.data import QuerySets, preference_pairs, query_sets
from research.dpo import TrainSettings, make_trainer, train
from research.figures import NetWin, publish, table
from research.lab import Lab, ModelSource, caption, config_of, engine_of, judge_of, persona_of, rows_of
from research.runner import Results, Row, parser, settings_of
from research.slices import ALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPO = "dpo"
METHODS: tuple[MethodName, ...] = ("alignez", "distill")
ARMS = (DPO, *(f"{DPO} + {method}" for method in METHODS))


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__, "figure3")
    default = TrainSettings()
    made.add_argument("--shares", type=float, nargs="+", default=[1, 5, 10, 25], help="percent (default: %(default)s)")
    made.add_argument("--pairs", type=int, default=700, help="size of the whole set (default: %(default)s)")
    made.add_argument("--rank", type=int, help="of the adapter; default: hidden size ÷ 16")
    made.add_argument("--learning-rate", type=float, default=default.learning_rate)
    made.add_argument("--batch", type=int, default=default.batch)
    made.add_argument("--epochs", type=int, default=default.epochs)
    made.add_argument("--max-length", type=int, default=default.max_length, help="tokens of prompt and answer")
    return made


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows, then the table and the plot."""
    where = ModelSource.of(args.model)
    if not preference_pairs(args.data, where.directory, persona_of(args), 1, 0):
        raise SystemExit(f"no ground-truth pairs for {persona_of(args).preferred!r} to train on: see --data")
    shares = [0.0, *sorted(share for share in args.shares if share > 0)]
    settings = {name: value for name, value in settings_of(args).items() if name != "shares"}
    results = Results(args.out / f"figure3-{where.key}.json", settings, args.seeds * len(shares))
    cells = [{"seed": seed, "share": share} for seed in range(args.seeds) for share in shares]
    if not all(results.find(cell) for cell in cells):
        with engine_of(args.model, args) as engine:
            for cell in cells:
                results.row(cell, partial(_row, engine, args, **cell))
    rows = [row for row in results.rows if row["share"] in shares and row["seed"] < args.seeds]
    parts = [caption(args), table_of(rows, shares), _training(rows, shares)]
    publish(args.out, f"figure3-{where.key}", "\n\n".join(parts), _plot(rows, shares, where.key))


def _row(engine: TransformersEngine, args: argparse.Namespace, seed: int, share: float) -> Row:
    """The measurements of one share and seed; begun from nothing, so that its costs are those of one attempt."""
    where = ModelSource.of(args.model)
    folder = args.out / "unfinished" / f"figure3-{where.key}-{seed}-{share:g}"
    shutil.rmtree(folder, ignore_errors=True)
    lab = _lab(engine, args, seed, folder / "base")
    try:
        if share:
            every = with_room(engine, preference_pairs(args.data, where.directory, lab.persona, args.pairs, seed))
            return _trained_row(lab, args, every[: max(1, round(len(every) * share / 100))], folder)
        profiles = _fit(lab)
        judged = rows_of(lab.judged([lab.arm(f"{DPO} + {method}", profiles[method]) for method in METHODS], ALL))
        return {"arms": {**judged, DPO: judged[BARE]}, "cost": _costs(profiles, 0.0, 0), "pairs": 0}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _trained_row(lab: Lab, args: argparse.Namespace, pairs: Sequence[GivenPair], folder: Path) -> Row:
    seed, form = lab.config.seed, lab.engine.prompt_format
    settings = TrainSettings(args.rank, args.learning_rate, args.batch, args.epochs, args.max_length, seed=seed)
    began = time.monotonic()
    base = ModelSource.of(args.model).path
    trainer = make_trainer(base, pairs, form, folder, settings, dtype=args.dtype, device=args.device)
    trained = train(trainer, folder / "model")
    seconds = time.monotonic() - began
    with engine_of(str(folder / "model"), args) as tuned:
        own = _lab(tuned, args, seed, folder / "tuned")
        profiles = _fit(own)
        arms = [BARE_ARM, *(own.arm(method, profiles[method]) for method in METHODS)]
        texts = own.answers(arms, [ALL])[ALL]

    def given(name: str, samples: list[Sample], seeds: list[int]) -> list[str]:
        return [texts[name][sample.index] for sample in samples]

    shown = [lab.give(name, ALL, partial(given, arm.name)) for name, arm in zip(ARMS, arms, strict=True)]
    return {
        "arms": rows_of(lab.judged(shown, ALL)),
        "cost": _costs(profiles, seconds, trained.tokens),
        "pairs": trained.pairs,
        "loss": trained.loss,
        "accuracy": trained.accuracy,
    }


def _fit(lab: Lab) -> dict[MethodName, FittedProfile]:
    return {method: lab.fit(method) for method in METHODS}


def _lab(engine: TransformersEngine, args: argparse.Namespace, seed: int, folder: Path) -> Lab:
    """A lab whose slices are one group, with the queries and the judge of the options' base model."""
    where = ModelSource.of(args.model)
    sets = query_sets(args.data, where.directory, args.fit_queries, args.tune_queries, args.queries)
    together = tuple(itertools.chain.from_iterable(sets.slices.values()))
    merged = QuerySets(sets.fit, sets.tune, {ALL: together})
    return Lab(engine, persona_of(args), merged, config_of(args, seed), folder, "figure3", judge_of(args))


def _costs(profiles: Mapping[MethodName, FittedProfile], seconds: float, tokens: int) -> dict[str, dict[str, float]]:
    """Arm → seconds and tokens until it can answer.

    Args:
        seconds, tokens: of the training, 0 without one; tokens generated for the fit are added.
    """
    found: dict[str, dict[str, float]] = {DPO: {"seconds": round(seconds, 1), "tokens": tokens}}
    for method, profile in profiles.items():
        last = profile.diagnostics["last_attempt"]
        found[f"{DPO} + {method}"] = {
            "seconds": round(seconds + sum(last["seconds"].values()), 1),
            "tokens": tokens + last["tokens_generated"],
        }
    return found


def nets(rows: Sequence[Row], shares: Sequence[float], arm: str) -> list[NetWin]:
    """The arm's net win over the untrained bare model, by share."""
    return [NetWin.of([row["arms"][arm]["over_bare"] for row in rows if row["share"] == share]) for share in shares]


def table_of(rows: Sequence[Row], shares: Sequence[float]) -> str:
    """The results as Markdown, one line per share and arm."""
    lines = []
    for share in shares:
        of_share = [row for row in rows if row["share"] == share]
        for arm in ARMS:
            (net,) = nets(rows, [share], arm)
            seconds, tokens = (mean([row["cost"][arm][key] for row in of_share]) for key in ("seconds", "tokens"))
            measures = (mean([row["arms"][arm][key] for row in of_share]) for key in ("coherence", "repetition"))
            name = arm if share else arm.replace(DPO, "untrained")
            lines.append([
                f"{share:g} %", of_share[0]["pairs"], name, net.queries, net, *(f"{m:+.2f}" for m in measures),
                f"{seconds:.0f}", f"{tokens:,.0f}",
            ])  # fmt: skip
    head = ["share", "pairs", "arm", "n", "net win over bare", "coherence", "repetition", "seconds", "tokens"]
    return table(head, lines)


def _training(rows: Sequence[Row], shares: Sequence[float]) -> str:
    parts = []
    for share in shares:
        of_share = [row for row in rows if row["share"] == share and share]
        if of_share:
            loss, accuracy = (mean([row[key] for row in of_share]) for key in ("loss", "accuracy"))
            parts.append(f"{share:g} %: {loss:.3f}, {accuracy:.2f}")
    return f"Loss of the last step, and its share of pairs with a positive margin: {'; '.join(parts)}."


def _plot(rows: Sequence[Row], shares: Sequence[float], key: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm in ARMS:
        found = nets(rows, shares, arm)
        middle = [net.net for net in found]
        reach = [[net.net - net.low for net in found], [net.high - net.net for net in found]]
        left.errorbar(shares, middle, yerr=reach, marker="o", capsize=2, label=arm)
        of_share = [[row["cost"][arm]["seconds"] for row in rows if row["share"] == share] for share in shares]
        right.plot([max(1.0, mean(seconds)) for seconds in of_share], middle, marker="o", linestyle=":", label=arm)
    left.set(title=f"{key}: net win over the untrained model", xlabel="% of the preference set", ylim=(-1.05, 1.05))
    right.set(title="the same by seconds to the first answer", xlabel="seconds", xscale="log", ylim=(-1.05, 1.05))
    for plot in (left, right):
        plot.axhline(0, color="black", linewidth=0.8)
    left.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(options().parse_args())
