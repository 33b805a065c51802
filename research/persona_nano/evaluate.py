"""The effect of the methods on persona-nano, measured by the exact style scorer.

`python -m research.persona_nano.evaluate --queries 200 --seeds 3 --out FILE.json`

All rows answer the same held-out queries at temperature 0.8; the rows of a seed share their sampling seeds. FILE.json
is rewritten after each persona, and its personas are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import FittedProfile, fit_profile
from alignez_core.models import persona_nano
from alignez_core.models.persona_nano.style import style_of
from alignez_core.models.persona_nano.styles import NanoPersona
from alignez_core.prompts import Prefix, persona_text, render
from alignez_core.self_preference import row_seed
from alignez_core.serving_plan import PlanSource
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import FitQuery, FitSpec, Persona
from alignez_core.spec.samples import Sample

TEMPERATURE = 0.8
MAX_TOKENS = 48
#: Fit queries of the methods with a fixed form; `auto` fits and chooses on the bank, like a user's fit.
FIT_QUERIES = 100

BASE, PROMPT = "base model", "persona as a prompt"
FIXED: dict[str, dict[str, Any]] = {
    "alignez, L=5, K=10": {"method": "alignez", "neighbors": 10},
    "transport": {"method": "transport"},
    "distill, λ 1": {"method": "distill", "contrast": 1.0, "contrast_form": "full"},
}
AUTO = "auto"
#: Strengths of the choice of `auto`, beside 1.
DOSES = (0.5, 1.5)
ROWS = (BASE, PROMPT, *FIXED, AUTO, *(f"{AUTO}, strength {dose:g}" for dose in DOSES))

Shares = dict[str, float]


@dataclass(frozen=True)
class Exam:
    """The queries for all rows of a persona and seed."""

    engine: Engine
    persona: NanoPersona
    queries: Sequence[str]
    seed: int

    @property
    def words(self) -> Persona:
        """The persona for a fit."""
        return Persona(self.persona.preferred, self.persona.dispreferred)

    @property
    def samples(self) -> list[Sample]:
        """The queries as samples that belong to no fit."""
        return [Sample(1_000_000 + i, query, self.words, "bank") for i, query in enumerate(self.queries)]

    def fit(self, **settings: Any) -> FittedProfile:
        """A profile with a fixed form, fitted on all queries, without choice and proof."""
        config = FitConfig(seed=self.seed, answers=FIT_QUERIES, tune_queries=0, held_out_queries=0, **settings)
        queries = tuple(FitQuery(text) for text in persona_nano.query_bank()[:FIT_QUERIES])
        return fit_profile(self.engine, FitSpec(self.words, queries, config=config))

    def fit_auto(self) -> FittedProfile:
        """The default profile of a persona."""
        spec = FitSpec(self.words, bank=tuple(persona_nano.query_bank()), config=FitConfig(seed=self.seed))
        return fit_profile(self.engine, spec)

    def served(self, profile: FittedProfile, strength: float = 1.0) -> Shares:
        """Shares of styles in answers with a profile; each request has the edit of the serving path."""
        source = PlanSource(self.engine, profile.config, profile.fit_samples, profile.neighbor_rows)
        return self.shares(
            [source.plan(profile.candidate, sample, strength) for sample in self.samples], profile.prefix
        )

    def shares(self, plans: Sequence[Any] | None = None, prefix: Prefix | None = None) -> Shares:
        """Shares of answers in the preferred, dispreferred, plain and no style."""
        form = self.engine.prompt_format
        requests = [
            GenerationRequest(
                render(form, query, prefix=prefix),
                max_tokens=MAX_TOKENS,
                temperature=TEMPERATURE,
                seed=row_seed(self.seed, i, "nano"),
                stop=form.stop,
                edit=plans[i] if plans else None,
            )
            for i, query in enumerate(self.queries)
        ]
        counts = Counter(style_of(completion.text) for completion in self.engine.generate(requests))
        names = {
            "preferred": self.persona.preferred_style,
            "dispreferred": self.persona.dispreferred_style,
            "plain": "plain",
            "none": None,
        }
        return {key: counts[name] / len(requests) for key, name in names.items()}


def measure(exam: Exam) -> dict[str, Any]:
    """All rows of one persona and seed."""
    rows = {BASE: exam.shares(), PROMPT: exam.shares(prefix=Prefix(persona_text(exam.words, "help")))}
    for name, settings in FIXED.items():
        rows[name] = exam.served(exam.fit(**settings))
    began = time.perf_counter()
    auto = exam.fit_auto()
    seconds = time.perf_counter() - began
    rows[AUTO] = exam.served(auto)
    for dose in DOSES:
        rows[f"{AUTO}, strength {dose:g}"] = exam.served(auto, dose)
    return {
        "rows": rows,
        "auto": {
            "chosen": auto.choice["chosen"],
            "quality": auto.quality,
            "reasons": list(auto.quality_reasons),
            "over_bare": auto.report["comparisons"]["over_bare"],
            "over_prompt": auto.report["comparisons"]["over_prompt"],
            "fit_seconds": round(seconds, 1),
        },
    }


def summary(runs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By row: means over personas and seeds, the weakest persona, and the range of the seeds' means.

    Args:
        runs: seed → persona → result of `measure`.
    """
    found: dict[str, dict[str, Any]] = {}
    names = sorted({persona for by_persona in runs.values() for persona in by_persona})
    for row in ROWS:
        per = {n: [by[n]["rows"][row] for by in runs.values() if n in by] for n in names}
        line: dict[str, Any] = {"personas": len(per), "seeds": min(len(shares) for shares in per.values())}
        for key in ("preferred", "dispreferred", "plain", "none"):
            means = {name: statistics.fmean(s[key] for s in shares) for name, shares in per.items()}
            seeds = [statistics.fmean(p["rows"][row][key] for p in by.values()) for by in runs.values()]
            line[key] = round(statistics.fmean(means.values()), 4)
            line[f"{key} seed spread"] = round(max(seeds) - min(seeds), 4)
            if key == "preferred":
                worst = min(means, key=lambda name: means[name])
                line["weakest"] = [worst, round(means[worst], 4)]
        found[row] = line
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--format", choices=["chat", "plain"], default="chat")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    asked = persona_nano.held_out_queries()[: args.queries]
    settings = {"format": args.format, "dtype": args.dtype, "queries": len(asked)}
    results: dict[str, Any] = {**settings, "runs": {}}
    if args.out.exists():
        results = json.loads(args.out.read_text())
        if {key: results[key] for key in settings} != settings:
            parser.error(f"{args.out} holds figures of other settings; name another file")
    with TransformersEngine.load(persona_nano.MODEL_DIR, prompt_format=args.format, dtype=args.dtype) as engine:
        for seed in range(args.seeds):
            done = results["runs"].setdefault(str(seed), {})
            for persona in persona_nano.PERSONAS:
                if persona.name in done:
                    continue
                began = time.monotonic()
                done[persona.name] = measure(Exam(engine, persona, asked, seed))
                results["summary"] = summary({s: by for s, by in results["runs"].items() if by})
                args.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
                print(f"seed {seed} {persona.name} {time.monotonic() - began:.0f} s", done[persona.name], flush=True)
    for name, line in results["summary"].items():
        print(name, line)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
