"""Which time steps to edit, an open end of the paper's section 6.

    python -m research.steps --model DIR --preferred "swashbuckling pirate" --dispreferred "plain and ordinary"

Step 0 is the position that predicts the first token of the answer. Schedules: all steps, the first m, every m-th, and a
weight that decays as exp(−step ÷ m). The edits are `alignez` with one pair of directions for all queries, and `distill`
at λ = 1; `spent` is the mean weight of a step over an answer of full length.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from alignez_core.editing import EditPlan
from alignez_core.proof.arms import Arm
from alignez_core.spec.limits import MethodName
from alignez_core.spec.samples import Sample
from research.figures import bars, publish
from research.hooked import HookedModel, plan_hooks
from research.lab import Lab, ModelSource, caption
from research.runner import Row, parser
from research.slices import arms_table, compare, groups_of, net_win, over_prompt

Weight = Callable[[int], float]
SCHEDULES: dict[str, Weight] = {
    "all": lambda step: 1.0,
    "first 1": lambda step: float(step < 1),
    "first 8": lambda step: float(step < 8),
    "first 24": lambda step: float(step < 24),
    "every 2nd": lambda step: float(step % 2 == 0),
    "every 4th": lambda step: float(step % 4 == 0),
    "decay 8": lambda step: math.exp(-step / 8),
    "decay 24": lambda step: math.exp(-step / 24),
}
FITS: dict[MethodName, dict[str, Any]] = {
    "alignez": {"conditional": False},
    "distill": {"contrast": 1.0, "contrast_form": "full"},
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__, "steps")
    made.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES), metavar="NAME")
    return made


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows, then the table and the plot."""
    rows = compare(args, "steps", partial(_arms, args))
    arms = [f"{method}, {schedule}" for method in FITS for schedule in args.schedules]
    group, key = groups_of(rows)[-1], ModelSource.of(args.model).key

    def spent(_: str, arm: str) -> str:
        weight = SCHEDULES[arm.split(", ")[1]]
        return f"{sum(map(weight, range(args.answer_tokens))) / args.answer_tokens:.2f}"

    lines = arms_table(rows, arms, columns={"over the prompt": over_prompt(rows), "spent": spent})
    shown = {name: [net_win(rows, group, f"{method}, {name}") for method in FITS] for name in args.schedules}
    figure = bars(list(FITS), shown, f"{key}: net win over the base model by time steps", "net win")
    publish(args.out, f"steps-{key}", f"{caption(args)}\n\n{lines}", figure)


def _arms(args: argparse.Namespace, lab: Lab, slices: Sequence[str]) -> tuple[list[Arm], Row]:
    model = HookedModel.load(ModelSource.of(args.model).path, args.dtype, args.device)
    arms, chosen = [], {}
    for method, settings in FITS.items():
        profile = lab.fit(method, **settings)
        plan = profile.plan()
        assert plan is not None  # both methods edit
        chosen[method] = list(plan.layers)
        for name in args.schedules:
            answer = partial(_answers, model, plan, SCHEDULES[name], lab)
            arms.append([lab.give(f"{method}, {name}", group, answer) for group in slices][-1])
    return arms, {"layers": chosen}


def _answers(
    model: HookedModel, plan: EditPlan, weight: Weight, lab: Lab, samples: list[Sample], seeds: list[int]
) -> list[str]:
    prompts = [model.prompt_format.wrap(sample.query) for sample in samples]
    return model.generate(
        prompts,
        seeds,
        plan_hooks(model, plan, weight),
        max_tokens=lab.config.answer_tokens,
        temperature=lab.config.temperature,
    )


if __name__ == "__main__":
    run(options().parse_args())
