"""One plan per group of queries, chosen by the neighbours' vote, for 2, 4 and 8 groups.

    python -m research.groups --model DIR --out groups.json

Each topic of `tests/personas/groups.json` has its own persona; twelve of its queries are fitted on and four are held
out. Figures: the share of right votes, by the encoder and by each layer's MLP output, and the net win over the bare
model (judged by `self` with each query's persona) for the vote, the right plan, a wrong plan, one global plan, and the
right persona as a prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from alignez_core.embeddings import make_encoder, unit_rows
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit_run import FitRun, TextRequest
from alignez_core.methods import method_of
from alignez_core.methods.base import Candidate, Material, vote
from alignez_core.neighbors import nearest
from alignez_core.prompts import persona_prompt
from alignez_core.proof.arms import BARE_ARM, PROMPT_ARM, Arena, Arm, Trial
from alignez_core.proof.judges import Likelihoods, SelfJudge
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample
from research.runner import Results

GROUPS = Path(__file__).parents[1] / "tests" / "personas" / "groups.json"
_FITTED = 12
_CONTRAST = 1.0


def measure(engine: TransformersEngine, topics: list[dict[str, Any]], config: FitConfig) -> dict[str, Any]:
    """The figures for one number of groups."""
    samples: list[Sample] = []
    for group, topic in enumerate(topics):
        persona = Persona(topic["preferred"], topic["dispreferred"])
        for i, query in enumerate(topic["queries"]):
            split = "fit" if i < _FITTED else "held_out"
            samples.append(Sample(len(samples), query, persona, group=group, split=split))  # type: ignore[arg-type]
    fit, held = ([s for s in samples if s.split == split] for split in ("fit", "held_out"))
    run = FitRun(engine, config, lambda event: None)
    form = engine.prompt_format
    prompts = [persona_prompt(form, s.query, s.persona, "help") for s in fit]
    answers = run.texts("responses", [TextRequest("fit", s.index, p) for s, p in zip(fit, prompts, strict=True)])["fit"]
    grouped = _candidate(engine, config, fit, answers)
    merged = _candidate(engine, config, [_in_one_group(s) for s in fit], answers)

    encoder = make_encoder(config.query_encoder, engine)
    votes = _votes(fit, held, encoder.encode([s.query for s in fit]), encoder.encode([s.query for s in held]), config)
    bank, asked = (engine.represent([form.wrap(s.query) for s in part], "last") for part in (fit, held))
    by_layer = []
    for layer in range(engine.info.n_layers):
        found = _votes(fit, held, unit_rows(bank[:, layer]), unit_rows(asked[:, layer]), config)
        by_layer.append(_right(found, held))
    arms = [
        BARE_ARM,
        PROMPT_ARM,
        Arm("vote", plan=lambda s: grouped.edits[votes[s.index]]),
        Arm("right", plan=lambda s: grouped.edits[s.group]),
        Arm("wrong", plan=lambda s: grouped.edits[(s.group + 1) % len(topics)]),
        Arm("global", plan=lambda s: merged.edits[0]),
    ]
    likelihoods = Likelihoods(engine)
    arena, trial = Arena(run, SelfJudge(likelihoods), likelihoods), Trial(tuple(held))
    texts = arena.ask("evaluation", arms, [trial])
    bare = texts["bare", "alone"]
    nets = {arm.name: arena.compare(trial, texts[arm.name, "alone"], bare).to_dict() for arm in arms[1:]}
    return {
        "held_out": len(held),
        "right_votes": _right(votes, held),
        "right_votes_by_layer": by_layer,
        "net_over_bare": nets,
    }


def _votes(
    fit: Sequence[Sample], held: Sequence[Sample], bank: Tensor, asked: Tensor, config: FitConfig
) -> dict[int, int]:
    """Sample index → group that the neighbours of a held-out sample vote for. bank, asked: unit rows."""
    found = {}
    for sample, row in zip(held, asked, strict=True):
        near = nearest(row, bank, config.neighbors)
        found[sample.index] = vote([fit[i].group for i in near.tolist()], (bank[near] @ row).tolist())
    return found


def _right(votes: Mapping[int, int], held: Sequence[Sample]) -> float:
    return round(sum(votes[s.index] == s.group for s in held) / len(held), 3)


def _candidate(engine: TransformersEngine, config: FitConfig, fit: list[Sample], answers: dict[int, str]) -> Candidate:
    return method_of("distill").candidates(Material(engine, config, fit, help=answers))[0]


def _in_one_group(sample: Sample) -> Sample:
    return Sample(sample.index, sample.query, sample.persona, split="fit")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub id")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    topics: list[dict[str, Any]] = json.loads(GROUPS.read_text())
    results = Results(args.out, {"model": args.model, "dtype": args.dtype}, len(args.counts))
    config = FitConfig(method="distill", contrast=_CONTRAST, contrast_form="full")
    with TransformersEngine.load(args.model, dtype=args.dtype, threads=args.threads) as engine:
        for count in args.counts:
            row = results.row({"groups": count}, partial(measure, engine, topics[:count], config))
            nets = {name: found["net"] for name, found in row["net_over_bare"].items()}
            print(f"{count} groups: right votes {row['right_votes']:.2f}, net over bare {nets}", flush=True)


if __name__ == "__main__":
    main()
