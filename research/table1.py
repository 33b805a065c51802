"""Table 1 of the AlignEZ paper: net wins over the base model on the helpfulness slices of just-eval-instruct.

    python -m research.table1 --model DIR --data DIR --seeds 3 --out artifacts/research

Arms: `alignez` (the paper's method, L = 5, K = 10), fitted on queries that it is not judged on, and, as the paper does
it, on each slice's own queries (`alignez, own queries`); `caa` and `iti` on 300 ground-truth pairs, with the settings
that are best on the vicuna slice; `distill`, `auto` (ours), and `prompt`, the persona as a system message. RI is
relative to `--aligned`: another model, or the persona as a prompt in its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.proof.arms import BARE, PROMPT, Arm
from alignez_core.spec.samples import Sample
from research.baselines import caa, iti, why_no_pairs, with_room
from research.data import preference_pairs
from research.figures import bars, publish, relative_improvement
from research.hooked import HookedModel
from research.lab import Lab, ModelSource, caption, engine_of
from research.runner import Row, parser
from research.slices import about, arms_in, arms_table, compare, groups_of, mean_of, net_win, over_prompt

OWN = "alignez, own queries"
ALIGNED = "aligned"
#: In the order of the table.
ARMS = (PROMPT, "iti", "caa", "alignez", OWN, "distill", "auto", ALIGNED)


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__, "table1")
    made.add_argument("--pairs", type=int, default=300, help="ground-truth pairs of CAA and ITI (default: %(default)s)")
    made.add_argument("--aligned", default=PROMPT, help="model that RI relates to, or 'prompt' (default: %(default)s)")
    return made


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows, then the table and the plot."""
    rows = compare(args, "table1", partial(_arms, args))
    groups = groups_of(rows)
    arms = [arm for arm in ARMS if arm in arms_in(rows, groups[0])[0]]
    aligned = PROMPT if args.aligned == PROMPT else ALIGNED

    def improvement(group: str, arm: str) -> str:
        if arm == aligned:
            return ""
        return relative_improvement(net_win(rows, group, arm).net, net_win(rows, group, aligned).net)

    lines = arms_table(rows, arms, columns={"RI": improvement, "over the prompt": over_prompt(rows)})
    chosen = "; ".join(f"{arm}: {about(rows, arm)}" for arm in rows[0]["about"])
    bare = mean_of(rows, groups[-1], BARE, "repetition")
    note = f"RI relates to {aligned}. Repetition of the bare model: {bare:.2f}. Chosen: {chosen}."
    key = ModelSource.of(args.model).key
    shown = {arm: [net_win(rows, group, arm) for group in groups] for arm in arms}
    figure = bars(groups, shown, f"{key}: net win over the base model", "net win")
    publish(args.out, f"table1-{key}", "\n\n".join([caption(args), lines, note]), figure)


def _arms(args: argparse.Namespace, lab: Lab, slices: Sequence[str]) -> tuple[list[Arm], Row]:
    """The arms, and what was chosen for those that had a choice."""
    where = ModelSource.of(args.model)
    own = {group: lab.fit("alignez", [s.query for s in lab.samples[group]], f"alignez {group}") for group in slices}
    auto, distill = lab.fit("auto"), lab.fit("distill", label="auto")  # which share their texts
    arms = [lab.arm("alignez", lab.fit("alignez")), lab.arm_of_each(OWN, own)]
    arms += [lab.arm("distill", distill), lab.arm("auto", auto)]
    chosen = {"distill": str(distill.choice["chosen"]), "auto": str(auto.choice["chosen"])}
    given = preference_pairs(args.data, where.directory, lab.persona, args.pairs, lab.config.seed)
    pairs = with_room(lab.engine, given)
    reason = why_no_pairs(pairs, lab.persona)
    if reason:
        print(reason, flush=True)
    else:
        added, shifted = caa(lab, pairs), iti(lab, HookedModel.load(where.path, args.dtype, args.device), pairs, slices)
        arms += [added.arm, shifted.arm]
        chosen |= {"caa": added.setting, "iti": shifted.setting}
    if args.aligned != PROMPT:
        with engine_of(args.aligned, args) as engine:
            arms.append([lab.give(ALIGNED, group, partial(_answers, engine, lab)) for group in slices][-1])
    return arms, chosen


def _answers(engine: Engine, lab: Lab, samples: list[Sample], seeds: list[int]) -> list[str]:
    """Another model's answers, in its own prompt format."""
    form, config = engine.prompt_format, lab.config
    requests = [
        GenerationRequest(form.wrap(s.query), config.answer_tokens, config.temperature, seed=seed, stop=form.stop)
        for s, seed in zip(samples, seeds, strict=True)
    ]
    return [completion.text for completion in engine.generate(requests)]


if __name__ == "__main__":
    run(options().parse_args())
