"""Steering beside prompting, scored as AxBench scores them: concept, instruction, fluency, and their harmonic mean.

    python -m research.axbench --model DIR --seeds 3 --out artifacts/research

Each answer gets 0, 1 or 2 for each of the three, and their harmonic mean, which is 0 where one of them is; personas
stand in the place of concepts. As there, the strength of a method is chosen on other queries than those of the table.

Source: Wu et al., AxBench (arXiv 2501.17148), section 4 (steering). Deviation: a language model rates the answers
there; here the model's own likelihoods do, so values compare with each other only, not with that leaderboard's:

- concept: log p(answer | persona) − log p(answer | opposite) per token; 1 above the bare model's median, 2 from the
  prompted model's median on (where the prompt does not raise it: 2 above the bare median).
- instruction: log p(answer | its query) − log p(answer | another query) per token, bare; 1 above 0, 2 from half of the
  bare answers' median on.
- fluency: nats per token that the answer is less likely under the persona than prompted answers, and repetition above
  the larger mean of bare and prompted answers: 2 within the gate's bounds (.4 and .06), 1 within twice the bounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from alignez_core.engines.base import ScoreRequest
from alignez_core.proof.arms import BARE, BARE_ARM, PROMPT, PROMPT_ARM, Arm
from alignez_core.proof.gate import MAX_COHERENCE, MAX_REPETITION
from alignez_core.proof.judges import Answered
from alignez_core.proof.measures import bootstrap_interval, mean, repetition
from alignez_core.spec.persona import GivenPair
from alignez_core.spec.samples import Sample, with_text
from research.baselines import caa
from research.figures import publish, signed, table
from research.lab import Lab, ModelSource, caption
from research.personas import Styled, add_personas, by_query, each_persona
from research.runner import Row, parser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("concept", "instruction", "fluency")
ARMS = (BARE, PROMPT, "caa", "alignez", "distill")


def options() -> argparse.ArgumentParser:
    """The command line."""
    return add_personas(parser(__doc__, "axbench"))


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows, then the tables."""
    rows, key = each_persona(args, "axbench", _row), ModelSource.of(args.model).key
    lines = []
    for arm in ARMS:
        parts = [mean([row["arms"][arm][part] for row in rows]) for part in PARTS]
        found = overall(rows, arm)
        shown = signed(mean(found), *bootstrap_interval(found))
        lines.append([arm, len(found), *(f"{part:.2f}" for part in parts), shown])
    names = list(dict.fromkeys(row["persona"] for row in rows))
    each = [
        [name, *(f"{mean(overall([row for row in rows if row['persona'] == name], arm)):.2f}" for arm in ARMS)]
        for name in names
    ]
    text = [
        caption(args, f"{len(names)} personas"),
        table(["arm", "n", *PARTS, "harmonic mean, 0 to 2"], lines),
        table(["persona", *ARMS], each),
    ]
    publish(args.out, f"axbench-{key}", "\n\n".join(text), _plot(rows, key))


def overall(rows: Sequence[Row], arm: str) -> list[float]:
    """The harmonic mean of each query of each persona, a mean over seeds."""
    return by_query(rows, lambda row: row["arms"][arm]["overall"])


def own_pairs(lab: Lab) -> list[GivenPair]:
    """The model's own answers under the persona and its opposite as pairs: the data of a difference of means."""
    help_, harm = lab.own_answers("help"), lab.own_answers("harm")
    kept = with_text(with_text(lab.samples["fit"], help_), harm)
    return [GivenPair(s.query, help_[s.index], harm[s.index]) for s in kept]


def _row(lab: Lab, styled: Styled) -> Row:
    group = next(iter(lab.sets.slices))
    added, distill = caa(lab, own_pairs(lab)), lab.fit("distill")
    arms = [BARE_ARM, PROMPT_ARM, added.arm, lab.arm("alignez", lab.fit("alignez")), lab.arm("distill", distill)]
    graded = grades(lab, arms, group)
    return {"arms": graded, "chosen": {"caa": added.setting, "distill": distill.choice["chosen"]}}


def grades(lab: Lab, arms: Sequence[Arm], group: str) -> Row:
    """Arm → means of the three grades, and the harmonic mean of each answer. Bare and prompted are among the arms."""
    texts, samples = lab.answers(arms, [group])[group], lab.samples[group]
    concepts = {name: _concept(lab, samples, found) for name, found in texts.items()}
    instructions = {name: _instruction(lab, samples, found) for name, found in texts.items()}
    likely = {
        name: lab.arena.likelihoods.per_token([Answered(s, found[s.index]) for s in samples], "help")
        for name, found in texts.items()
    }
    repeats = {name: [repetition(found[s.index]) for s in samples] for name, found in texts.items()}
    low, high = statistics.median(concepts[BARE]), statistics.median(concepts[PROMPT])
    relevant = statistics.median(instructions[BARE]) / 2
    prompted, loops = mean(likely[PROMPT]), max(mean(repeats[BARE]), mean(repeats[PROMPT]))
    found = {}
    for arm in texts:
        concept = [0 if c <= low else 2 if c >= high else 1 for c in concepts[arm]]
        instruction = [0 if i <= 0 else 2 if i >= relevant else 1 for i in instructions[arm]]
        strains = [
            max((prompted - value) / MAX_COHERENCE, (repeat - loops) / MAX_REPETITION)
            for value, repeat in zip(likely[arm], repeats[arm], strict=True)
        ]
        fluency = [2 if used <= 1 else 1 if used <= 2 else 0 for used in strains]
        harmonics = [round(harmonic(each), 4) for each in zip(concept, instruction, fluency, strict=True)]
        means = zip(PARTS, (concept, instruction, fluency), strict=True)
        found[arm] = {**{name: round(mean(values), 4) for name, values in means}, "overall": harmonics}
    return found


def harmonic(values: Sequence[float]) -> float:
    """The harmonic mean; 0 where a value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def _concept(lab: Lab, samples: Sequence[Sample], texts: Mapping[int, str]) -> list[float]:
    answered = [Answered(s, texts[s.index]) for s in samples]
    help_, harm = (lab.arena.likelihoods.per_token(answered, side) for side in ("help", "harm"))
    return [a - b if a > -float("inf") else -float("inf") for a, b in zip(help_, harm, strict=True)]


def _instruction(lab: Lab, samples: Sequence[Sample], texts: Mapping[int, str]) -> list[float]:
    """Nats per token by which each answer is likelier after its query than after the next one's."""
    form = lab.engine.prompt_format
    others = [*samples[1:], *samples[:1]]
    kept = [(s, other) for s, other in zip(samples, others, strict=True) if texts[s.index].strip()]
    own = lab.engine.score([ScoreRequest(form.wrap(s.query), texts[s.index]) for s, _ in kept])
    foreign = lab.engine.score([ScoreRequest(form.wrap(other.query), texts[s.index]) for s, other in kept])
    found = {s.index: float(a.mean() - b.mean()) for (s, _), a, b in zip(kept, own, foreign, strict=True) if len(a)}
    return [found.get(s.index, -float("inf")) for s in samples]


def _plot(rows: Sequence[Row], key: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    plot = figure.subplots()
    found = [overall(rows, arm) for arm in ARMS]
    middle = [mean(values) for values in found]
    reach = [[m - bootstrap_interval(v)[0] for m, v in zip(middle, found, strict=True)],
             [bootstrap_interval(v)[1] - m for m, v in zip(middle, found, strict=True)]]  # fmt: skip
    plot.bar(ARMS, middle, yerr=reach, capsize=3)
    plot.set(title=f"{key}: harmonic mean of concept, instruction, fluency", ylim=(0, 2))
    return figure


if __name__ == "__main__":
    run(options().parse_args())
