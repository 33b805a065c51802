"""Comparisons of arms on slices of queries: the loop over seeds and slices, and the net wins of its rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from alignez_core.proof.arms import BARE, BARE_ARM, PROMPT, PROMPT_ARM, Arm
from research.data import query_sets
from research.figures import NetWin, table
from research.lab import Lab, ModelSource, engine_of, rows_of
from research.runner import Results, Row, settings_of

#: Name of the group of all slices.
ALL = "all"
#: The arms of one seed, and JSON values about them that the rows keep.
MakeArms = Callable[[Lab, Sequence[str]], tuple[Sequence[Arm], Row]]


def compare(
    args: argparse.Namespace, experiment: str, make_arms: MakeArms, over: Sequence[str] = (BARE, PROMPT)
) -> list[Row]:
    """One row per seed and slice: `{"seed", "slice", "n", "arms": {arm: measures}, "about"}`.

    Args:
        make_arms: fits the arms of a seed; not called where all rows of a seed are stored.
        over: the arms against which there are verdicts.
    """
    where = ModelSource.of(args.model)
    slices = list(query_sets(args.data, where.directory, args.fit_queries, args.tune_queries, args.queries).slices)
    path = args.out / f"{experiment}-{where.key}.json"
    results = Results(path, settings_of(args), args.seeds * len(slices))
    keys = {seed: [{"seed": seed, "slice": group} for group in slices] for seed in range(args.seeds)}
    open_seeds = [seed for seed in keys if not all(results.find(key) for key in keys[seed])]
    if open_seeds:
        with engine_of(args.model, args) as engine:
            for seed in open_seeds:
                _run_seed(results, Lab.of(engine, args, experiment, seed), slices, seed, make_arms, over)
    return [row for row in results.rows if row["seed"] < args.seeds and row["n"]]


def _run_seed(
    results: Results, lab: Lab, slices: Sequence[str], seed: int, make_arms: MakeArms, over: Sequence[str]
) -> None:
    arms, about = make_arms(lab, slices)
    lab.answers([BARE_ARM, PROMPT_ARM, *arms], slices)  # all slices share the engine's batch
    for group in slices:

        def judge(group: str = group) -> Row:
            if not lab.samples[group]:  # none leaves room in the context
                return {"n": 0, "arms": {}, "about": about}
            return {"n": len(lab.samples[group]), "arms": rows_of(lab.judged(arms, group, over)), "about": about}

        results.row({"seed": seed, "slice": group}, judge)
    lab.close()


def groups_of(rows: Sequence[Row]) -> list[str]:
    """The slices, and `ALL` where there are several."""
    slices = list(dict.fromkeys(row["slice"] for row in rows))
    return [*slices, ALL] if len(slices) > 1 else slices


def arms_in(rows: Sequence[Row], group: str) -> list[Row]:
    """Arm → measures, one mapping per row of a group."""
    return [row["arms"] for row in rows if group in (ALL, row["slice"])]


def net_win(rows: Sequence[Row], group: str, arm: str, over: str = BARE) -> NetWin:
    """The net win of an arm in a group, over all seeds."""
    by_seed: dict[int, list[int]] = {}
    for row in rows:
        if group in (ALL, row["slice"]):
            by_seed.setdefault(row["seed"], []).extend(row["arms"][arm][f"over_{over}"])
    return NetWin.of(list(by_seed.values()))


def mean_of(rows: Sequence[Row], group: str, arm: str, key: str) -> float:
    """The mean of a measure over slices and seeds, each counted once."""
    values = [float(arms[arm][key]) for arms in arms_in(rows, group)]
    return sum(values) / len(values)


def about(rows: Sequence[Row], key: str) -> str:
    """What the rows say under a key of `about`, each value once."""
    return ", ".join(dict.fromkeys(str(row["about"][key]) for row in rows if key in row["about"]))


def arms_table(
    rows: Sequence[Row],
    arms: Sequence[str],
    over: str = BARE,
    columns: Mapping[str, Callable[[str, str], object]] | None = None,
) -> str:
    """One line per group and arm: counts, net win, coherence, repetition, and further columns.

    Args:
        columns: heading → value of (group, arm); they follow the net win.
    """
    more = columns or {}
    head = ["slice", "arm", "n", "W %", "L %", f"net win over {over}", *more, "coherence", "repetition"]
    lines = []
    for group in groups_of(rows):
        for arm in arms:
            net = net_win(rows, group, arm, over)
            lines.append([
                group, arm, net.queries, f"{100 * net.win:.0f}", f"{100 * net.lose:.0f}", net,
                *(value(group, arm) for value in more.values()),
                f"{mean_of(rows, group, arm, 'coherence'):+.2f}", f"{mean_of(rows, group, arm, 'repetition'):.2f}",
            ])  # fmt: skip
    return table(head, lines)


def over_prompt(rows: Sequence[Row]) -> Callable[[str, str], object]:
    """A column: the net win over the persona as a prompt."""
    return lambda group, arm: "" if arm == PROMPT else net_win(rows, group, arm, PROMPT)
