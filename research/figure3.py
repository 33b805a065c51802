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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import FittedProfile
from alignez_core.proof.arms import BARE, BARE_ARM, PROMPT
from alignez_core.proof.measures import mean
from alignez_core.spec.persona import GivenPair
from research.baselines import with_room
from research.data import QuerySets, preference_pairs, query_sets
from research.dpo import Trained, TrainSettings, train
from research.figures import NetWin
from research.lab import Lab, Where, caption, config_of, engine_of, judge_of, persona_of, rows_of
from research.runner import Results, Row, parser, publish, settings_of, table
from research.slices import ALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPO = "dpo"
METHODS = ("alignez", "distill")
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
    where = Where.of(args.model)
    if not preference_pairs(args.data, where.directory, persona_of(args), 1, 0):
        raise SystemExit(f"no ground-truth pairs for {persona_of(args).preferred!r} to train on: see --data")
    shares = [0.0, *sorted(share for share in args.shares if share > 0)]
    settings = {name: value for name, value in settings_of(args).items() if name != "shares"}
    results = Results(args.out / f"figure3-{where.key}.json", settings, args.seeds * len(shares))
    cells = [{"seed": seed, "share": share} for seed in range(args.seeds) for share in shares]
    if not all(results.find(cell) for cell in cells):
        with engine_of(args.model, args) as engine:
            for cell in cells:
                results.row(cell, lambda cell=cell: _row(engine, args, cell["share"], int(cell["seed"])))  # type: ignore[misc]
    rows = [row for row in results.rows if row["share"] in shares and row["seed"] < args.seeds]
    parts = [caption(args), table_of(rows, shares), _training(rows, shares)]
    publish(args.out, f"figure3-{where.key}", "\n\n".join(parts), _plot(rows, shares, where.key))


def _row(engine: TransformersEngine, args: argparse.Namespace, share: float, seed: int) -> Row:
    """The measurements of one share and seed."""
    lab = _lab(engine, args, f"figure3-{Where.of(args.model).key}-{seed}", seed)
    if not share:
        profiles = {method: lab.fit(method) for method in METHODS}  # type: ignore[arg-type]
        arms = [lab.arm(f"{DPO} + {method}", profile) for method, profile in profiles.items()]
        judged = rows_of(lab.judged(arms, ALL))
        lab.close()
        return {"arms": {**judged, DPO: judged[BARE]}, "cost": _costs(profiles, None), "pairs": 0}
    where = Where.of(args.model)
    every = with_room(engine, preference_pairs(args.data, where.directory, lab.persona, args.pairs, seed))
    pairs = every[: max(1, round(len(every) * share / 100))]
    folder = args.out / "trained" / f"{where.key}-{seed}-{share:g}"
    try:
        return _trained_row(engine, lab, args, pairs, folder, seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _trained_row(
    engine: TransformersEngine, lab: Lab, args: argparse.Namespace, pairs: Sequence[GivenPair], folder: Path, seed: int
) -> Row:
    settings = TrainSettings(args.rank, args.learning_rate, args.batch, args.epochs, args.max_length, seed=seed)
    base = Where.of(args.model).path
    trained = train(base, pairs, engine.prompt_format, folder, settings, dtype=args.dtype, device=args.device)
    with engine_of(str(folder), args) as tuned:
        own = _lab(tuned, args, f"figure3-{folder.name}", seed)
        profiles = {method: own.fit(method) for method in METHODS}  # type: ignore[arg-type]
        arms = [BARE_ARM, *(own.arm(method, profile) for method, profile in profiles.items())]
        texts = own.answers(arms, [ALL])[ALL]

    def given(name: str) -> Any:
        return lambda samples, seeds: [texts[name][sample.index] for sample in samples]

    shown = [lab.give(f"{arm} {folder.name}", ALL, given(name.name)) for arm, name in zip(ARMS, arms, strict=True)]
    judged = rows_of(lab.judged(shown, ALL))
    named = {arm: judged[made.name] for arm, made in zip(ARMS, shown, strict=True)}
    row = {"arms": {BARE: judged[BARE], PROMPT: judged[PROMPT], **named}, "cost": _costs(profiles, trained)}
    lab.close()
    own.close()
    return {**row, "pairs": len(pairs), "loss": trained.loss, "accuracy": trained.accuracy}


def _lab(engine: TransformersEngine, args: argparse.Namespace, name: str, seed: int) -> Lab:
    """A lab whose slices are one group, with the options' base model's queries and judge."""
    where = Where.of(args.model)
    sets = query_sets(args.data, where.directory, args.fit_queries, args.tune_queries, args.queries)
    together = tuple(itertools.chain.from_iterable(sets.slices.values()))
    merged = QuerySets(sets.fit, sets.tune, {ALL: together})
    return Lab(engine, persona_of(args), merged, config_of(args, seed), args.out, name, judge_of(args))


def _costs(profiles: dict[str, FittedProfile], trained: Trained | None) -> dict[str, dict[str, float]]:
    """Arm → seconds and tokens until it can answer: tokens trained on and generated for the fit."""
    seconds, tokens = (trained.seconds, trained.tokens) if trained else (0.0, 0)
    found: dict[str, dict[str, float]] = {DPO: {"seconds": seconds, "tokens": tokens}}
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
    """One line per share and arm."""
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
