"""What each edit does to persona-nano: `python -m alignez_core.nano.evaluate --queries 200 --seeds 3 --out FILE.json`.

Every persona is fitted by `fit_profile` on 100 queries of the bank and measured on held-out queries at temperature
0.8 with the exact style scorer. All rows of one seed share one fit. The first seed measures every row, the further
ones the main rows only. The file is rewritten after each persona, so an interrupted run leaves its figures.
`--queries` asks the main rows, `--side-queries` the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignez_core.directions import fit_directions, fit_transport
from alignez_core.editing import EditPlan
from alignez_core.embeddings import query_embedding
from alignez_core.engines.base import GenerationRequest, Span
from alignez_core.engines.transformers_engine import TransformersEngine
from alignez_core.fit import FittedProfile, PreferencePair, fit_profile
from alignez_core.fit_config import FitConfig, FitQuery, FitSpec
from alignez_core.layer_selection import select_layers
from alignez_core.nano import MODEL_DIR, held_out_queries, query_bank
from alignez_core.nano.residual import residual_answers
from alignez_core.nano.style import style_of
from alignez_core.nano.styles import PERSONAS, NanoPersona
from alignez_core.neighbors import nearest
from alignez_core.prompts import Persona
from alignez_core.request_edit import conditional_plan
from alignez_core.self_preference import Sample, TextPair, generate_characteristics, preference_prompt

TEMPERATURE = 0.8
MAX_TOKENS = 48
NEIGHBORS = 10
RESIDUAL_LAYER = 5

Plans = list[EditPlan] | None
Shares = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What all rows of one persona and seed share."""

    engine: TransformersEngine
    persona: NanoPersona
    profile: FittedProfile
    queries: Sequence[str]
    near: Sequence[Tensor]  #: per query, indices of its nearest fit queries
    seed: int

    def transport(self, strength: float = 1.0, steps: int | None = 1, layers: Sequence[int] | None = None) -> Plans:
        """Sample-conditional transport, a plan for each query."""
        kept = list(layers or self.profile.layers)
        config = FitConfig(steps=steps)
        p = self.profile
        return [
            conditional_plan(config, kept, p.help[i][:, kept], None, p.plain[i][:, kept], strength=strength)
            for i in self.near
        ]

    def transport_all(self) -> Plans:
        """One plan from all fit queries."""
        p = self.profile
        return [EditPlan.transport(p.layers, p.theta, p.tau)] * len(self.queries)

    def alignez(self, keep: int | None) -> Plans:
        """The paper's edit in the `keep` most consistent layers, or in all."""
        p = self.profile
        kept = list(p.layers)
        if keep is not None:
            kept = list(select_layers(fit_directions(p.help, p.harm), keep).layers)
        config = FitConfig(method="alignez")
        return [conditional_plan(config, kept, p.help[i][:, kept], p.harm[i][:, kept], None) for i in self.near]

    def additive(self) -> Plans:
        """Contrastive activation addition at every answer position."""
        p = self.profile
        return [EditPlan.additive(p.layers, (p.help - p.harm).mean(0))] * len(self.queries)

    def same_text(self) -> Plans:
        """Theta and tau read over the tokens of one answer, once with and once without the persona before it."""
        rows = [pair for pair in self.profile.pairs if pair.help_response]
        persona = Persona(self.persona.preferred, self.persona.dispreferred)
        sides: list[Tensor] = []
        for with_persona in (True, False):
            texts: list[list[int]] = []
            spans: list[Span] = []
            for pair in rows:
                prompt = self.engine.prompt_format.wrap(pair.query)
                if with_persona:
                    sample = Sample(pair.index, pair.query, persona)
                    prompt = preference_prompt(self.engine, sample, _texts(pair), "help")
                start = len(self.engine.tokenize(prompt))
                gap = " " if self.engine.prompt_format.name == "plain" else ""
                whole = self.engine.tokenize(f"{prompt}{gap}{pair.help_response}")
                texts.append(whole)
                spans.append(Span(start - 1, len(whole)))
            sides.append(self.engine.represent(texts, spans))
        fitted = fit_transport(*sides)
        return [EditPlan.transport(self.profile.layers, fitted.theta, fitted.tau, steps=None)] * len(self.queries)

    def answer(self, prompts: Sequence[str], plans: Plans, salt: int) -> list[str]:
        """Sampled answers, one a prompt."""
        requests = [
            GenerationRequest(
                prompt,
                max_tokens=MAX_TOKENS,
                temperature=TEMPERATURE,
                seed=(self.seed * 100 + salt) * 10_000 + i,
                stop=self.engine.prompt_format.stop,
                edit=plans[i] if plans else None,
            )
            for i, prompt in enumerate(prompts)
        ]
        return [completion.text for completion in self.engine.generate(requests)]

    def persona_prompt(self, salt: int) -> list[str]:
        """The persona as a prompt, with characteristics that the model names for each query."""
        persona = Persona(self.persona.preferred, self.persona.dispreferred)
        samples = [Sample(i, query, persona) for i, query in enumerate(self.queries)]
        texts = generate_characteristics(self.engine, samples, FitConfig(seed=self.seed + 1000))
        prompts = [preference_prompt(self.engine, s, t, "help") for s, t in zip(samples, texts, strict=True)]
        return self.answer(prompts, None, salt)

    def residual(self) -> list[str]:
        """Transport in the residual stream after one late block instead."""
        persona = Persona(self.persona.preferred, self.persona.dispreferred)
        pairs = self.profile.pairs
        helped = [preference_prompt(self.engine, Sample(p.index, p.query, persona), _texts(p), "help") for p in pairs]
        wrap = self.engine.prompt_format.wrap
        bare = [wrap(p.query) for p in pairs]
        asked = [wrap(query) for query in self.queries]
        return residual_answers(MODEL_DIR, RESIDUAL_LAYER, helped, bare, asked, TEMPERATURE, MAX_TOKENS, self.seed)


def _texts(pair: PreferencePair) -> TextPair:
    return TextPair(pair.help_characteristics, pair.harm_characteristics)


ALL_SEEDS, FIRST_SEED, SIDE = 0, 1, 2
#: name -> (where it is measured, how its plans are made); side rows are asked fewer queries, with the first seed.
EDITS: dict[str, tuple[int, Callable[[Bench], Plans]]] = {
    "transport, all layers, first position, K=10": (ALL_SEEDS, lambda b: b.transport()),
    "alignez, L=5 consistency": (ALL_SEEDS, lambda b: b.alignez(5)),
    "strength 0.5": (FIRST_SEED, lambda b: b.transport(0.5)),
    "strength 0.75": (FIRST_SEED, lambda b: b.transport(0.75)),
    "strength 0.25": (SIDE, lambda b: b.transport(0.25)),
    "strength 1.25": (SIDE, lambda b: b.transport(1.25)),
    "alignez, all layers": (SIDE, lambda b: b.alignez(None)),
    "transport, one plan from all fit queries": (SIDE, lambda b: b.transport_all()),
    "layers 3-7 only": (SIDE, lambda b: b.transport(layers=range(3, 8))),
    "2 positions": (SIDE, lambda b: b.transport(steps=2)),
    "3 positions": (SIDE, lambda b: b.transport(steps=3)),
    "every position": (SIDE, lambda b: b.transport(steps=None)),
    "additive mean difference, every position": (SIDE, lambda b: b.additive()),
    "same-text theta and tau, every position": (SIDE, lambda b: b.same_text()),
}
RESIDUAL = f"residual stream after layer {RESIDUAL_LAYER}, first position"
PROMPT = "persona as a prompt"


def shares(answers: Sequence[str], persona: NanoPersona) -> Shares:
    """Share of answers in the preferred, the dispreferred, the plain and no style."""
    counts = Counter(style_of(answer) for answer in answers)
    names = {"preferred": persona.preferred_style, "dispreferred": persona.dispreferred_style, "plain": "plain"}
    result = {key: counts[name] / len(answers) for key, name in names.items()}
    return {**result, "none": counts[None] / len(answers)}


def make_bench(
    engine: TransformersEngine,
    persona: NanoPersona,
    asked: Sequence[str],
    fit_queries: int,
    seed: int,
    responses: int = 32,
) -> Bench:
    """Fits one persona and finds each asked query's neighbours; `responses` are for the fit's own evaluation."""
    spec = FitSpec(
        Persona(persona.preferred, persona.dispreferred),
        tuple(FitQuery(text) for text in query_bank()[:fit_queries]),
        config=FitConfig(seed=seed, responses=responses),
    )
    profile = fit_profile(engine, spec)
    near = [nearest(row, profile.embeddings, NEIGHBORS) for row in query_embedding(engine, asked)]
    return Bench(engine, persona, profile, asked, near, seed)


def measure(
    fmt: str, queries: int, side_queries: int, fit_queries: int, seeds: int, report: Callable[[dict[str, Any]], None]
) -> None:
    """Calls `report` with the results so far, after each persona and pass, of one prompt format."""
    asked = held_out_queries()[:queries]
    results: dict[str, Any] = {"format": fmt, "queries": len(asked), "side queries": side_queries}
    found = results["personas"] = {persona.name: {} for persona in PERSONAS}
    quality = results["quality"] = {persona.name: [] for persona in PERSONAS}
    with TransformersEngine.load(MODEL_DIR, prompt_format="chat" if fmt == "chat" else "plain", threads=2) as engine:
        prompts = [engine.prompt_format.wrap(query) for query in asked]
        for seed in range(seeds):
            benches = []
            base: list[str] = []
            for persona in PERSONAS:
                bench = make_bench(engine, persona, asked, fit_queries, seed)
                benches.append(bench)
                quality[persona.name].append([bench.profile.quality, *bench.profile.quality_reasons])
                if len(base) < 4 * len(asked):  # the base model knows no persona: four draws a seed serve all
                    base += bench.answer(prompts, None, 90 + len(base) // len(asked))
                rows = found[persona.name]
                for salt, (name, (level, make)) in enumerate(EDITS.items()):
                    if (level == ALL_SEEDS or (level == FIRST_SEED and seed == 0)) and (fmt == "chat" or salt == 0):
                        rows.setdefault(name, []).append(shares(bench.answer(prompts, make(bench), salt), persona))
                rows.setdefault(PROMPT, []).append(shares(bench.persona_prompt(80), persona))
                report(results)
            counts = Counter(style_of(answer) for answer in base)
            results.setdefault("base styles", []).append({str(k): n / len(base) for k, n in counts.most_common()})
            for persona in PERSONAS:
                found[persona.name].setdefault("base model", []).append(shares(base, persona))
            report(results)
            if seed or fmt != "chat":
                continue
            for bench in (replace(b, queries=asked[:side_queries], near=b.near[:side_queries]) for b in benches):
                rows = found[bench.persona.name]
                for salt, (name, (level, make)) in enumerate(EDITS.items()):
                    if level == SIDE:
                        answers = bench.answer(prompts[:side_queries], make(bench), salt)
                        rows[name] = [shares(answers, bench.persona)]
                rows[RESIDUAL] = [shares(bench.residual(), bench.persona)]
                report(results)


def summary(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per row: mean over personas and seeds, the worst persona, the spread (max − min) of the seeds' means."""
    rows: dict[str, dict[str, Any]] = {}
    per_persona: dict[str, dict[str, list[Shares]]] = results["personas"]
    for name in dict.fromkeys(name for found in per_persona.values() for name in found):
        runs = {p: found[name] for p, found in per_persona.items() if name in found}
        line: dict[str, Any] = {"personas": len(runs), "seeds": min(len(r) for r in runs.values())}
        for key in ("preferred", "dispreferred", "plain", "none"):
            means = {p: statistics.fmean(run[key] for run in r) for p, r in runs.items()}
            by_seed = [statistics.fmean(r[s][key] for r in runs.values()) for s in range(line["seeds"])]
            line[key] = round(statistics.fmean(means.values()), 3)
            line[f"{key} seed spread"] = round(max(by_seed) - min(by_seed), 3)
            if key == "preferred":
                worst = min(means, key=lambda p: means[p])
                line["worst"] = [worst, round(means[worst], 3)]
        rows[name] = line
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--side-queries", type=int, default=200)
    parser.add_argument("--fit-queries", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=["chat", "plain"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    started = time.monotonic()
    parts: dict[str, Any] = {}

    def report(results: dict[str, Any]) -> None:
        parts[results["format"]] = {"summary": summary(results), **results}
        args.out.write_text(json.dumps({**parts, "seconds": round(time.monotonic() - started)}, indent=1) + "\n")
        print(f"{time.monotonic() - started:.0f}s {results['format']} {len(results['personas'])} personas", flush=True)

    for fmt in args.formats:
        measure(
            fmt,
            args.queries if fmt == "chat" else args.side_queries,
            args.side_queries,
            args.fit_queries,
            args.seeds if fmt == "chat" else 1,
            report,
        )
        for name, line in parts[fmt]["summary"].items():
            print(fmt, name, line, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
