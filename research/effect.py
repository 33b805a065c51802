"""The effect of fits on a real model, by persona.

    python -m research.effect personas --model DIR --seeds 3 --out effect.json    # auto: fit, choice, proof
    python -m research.effect kl --model DIR --out kl.json       # KL closed at λ = 0, four layers and all
    python -m research.effect expressed --model DIR --out expressed.json    # the gate's bound, with made-up adjectives
    python -m research.effect where --model DIR --persona pirate --out where.json    # temperature 0 and 1, bfloat16
    python -m research.effect table --out effect.json    # Markdown table, and agreement of judge and style measures

All figures are for held-out queries (the stored trace is for the tune split), judged by `self`, beside external
measures of style. An interrupted run goes on after its last finished fit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import FittedProfile, fit_profile
from alignez_core.fit_run import FitEvent, FitRun, TextRequest
from alignez_core.methods.distill import Form, FormFits, default_layers
from alignez_core.prompts import persona_prompt
from alignez_core.proof.arms import BARE_ARM, PROMPT_ARM, Arena, Trial
from alignez_core.proof.judges import Likelihoods, SelfJudge
from alignez_core.proof.measures import mean
from alignez_core.proof.report import expressiveness, kl_closed, prove
from alignez_core.query_bank import queries_for
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import FitSpec, Persona
from alignez_core.spec.samples import make_samples, of_split
from research.effect_table import agreement, line, table
from research.lab import fixed
from research.personas import described, style_score
from research.runner import Results

#: Arm → prefix of the kind of its texts; the kind of an edited arm also has the candidate's digest.
ARMS = {"bare": "bare/alone", "prompt": "help_response", "edited": "edited "}
#: Pairs of adjectives that no model knows; the gate must reject all of them.
_MADE_UP = (("zorbly", "quaxic"), ("mirvonian", "staplic"), ("quantorial", "brillic"), ("flumpish", "drebbing"))
_KEPT = ("comparisons", "expressiveness", "situations", "kl", "dose", "slices", "cost")


class TextsByKind:
    """Collects the texts of a fit by kind, from its progress events."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[int, str]] = {}

    def take(self, event: FitEvent) -> None:
        """A progress callback."""
        if event.chunk is not None:
            found = self.kinds.setdefault(event.chunk.kind, {})
            found.update(zip(event.chunk.indices, event.chunk.texts, strict=True))


def fit(
    engine: TransformersEngine, persona: dict[str, Any], bank: Sequence[str], config: FitConfig
) -> tuple[FittedProfile, dict[str, Any]]:
    """One fit, with its row of the table."""
    texts, began = TextsByKind(), time.perf_counter()
    spec = FitSpec(Persona(persona["preferred"], persona["dispreferred"]), bank=tuple(bank), config=config)
    profile = fit_profile(engine, spec, texts.take)
    held = {s.index for s in profile.samples if s.split == "held_out"}
    styles = {}
    for arm, begin in ARMS.items():
        kinds = [k for k in texts.kinds if k.startswith(begin) and (arm != "edited" or k.endswith("/alone"))]
        answers = [text for kind in kinds for index, text in texts.kinds[kind].items() if index in held]
        styles[arm] = round(mean([style_score(persona, answer) for answer in answers]), 4)
    row = {
        "persona": persona["name"],
        "seed": config.seed,
        "quality": profile.quality,
        "reasons": list(profile.quality_reasons),
        "chosen": profile.choice["chosen"],
        "why": profile.choice["reason"],
        "seconds": round(time.perf_counter() - began, 1),
        "stage_seconds": profile.diagnostics["last_attempt"]["seconds"],
        "style": styles,
        **{key: profile.report[key] for key in _KEPT},
        "samples": profile.report["samples"][:4],
        "trace": profile.choice["trace"],
    }
    return profile, row


def _fitted_row(*args: Any) -> dict[str, Any]:
    return fit(*args)[1]


def personas(args: argparse.Namespace) -> None:
    """Fits every persona and seed with `auto`."""
    found = _personas(args)
    results = _results(args, args.seeds * len(found))
    with _engine(args, args.dtype) as engine:
        for seed, persona in itertools.product(range(args.first_seed, args.first_seed + args.seeds), found):
            config = FitConfig(seed=seed, held_out_queries=args.held_out, method=args.method)
            key = {"persona": persona["name"], "seed": seed}
            print(line(results.row(key, partial(_fitted_row, engine, persona, _bank(args), config))), flush=True)
    print(table(results.rows), agreement(results.rows), sep="\n\n")


def kl(args: argparse.Namespace) -> None:
    """Share of KL(prompted ‖ bare) that λ = 0 closes on held-out queries: four layers at rank 3, all at rank 7."""

    def measure(engine: TransformersEngine, persona: Persona) -> dict[str, Any]:
        n = engine.info.n_layers
        forms = [Form(0.0, "full", default_layers(n)), Form(0.0, "full", tuple(range(n)), 7)]
        spec = FitSpec(persona, bank=_bank(args))
        run = FitRun(engine, spec.config, lambda event: None)
        wanted = [s for s in make_samples(spec) if s.split in ("fit", "held_out")]
        prompts = [persona_prompt(engine.prompt_format, s.query, s.persona, "help") for s in wanted]
        requests = [TextRequest("help", s.index, p) for s, p in zip(wanted, prompts, strict=True)]
        answers = run.texts("responses", requests)["help"]
        fits = FormFits(engine, of_split(wanted, "fit"), (), answers, forms)
        for _ in fits.run():
            pass
        held, found = of_split(wanted, "held_out")[: args.held_out], {}
        for name, fitted in zip(("four", "all"), fits.fitted, strict=True):
            plan = fitted.plan(spec.config)
            found[name] = kl_closed(engine, held, answers, fixed(plan))
        return {"n": len(held), **found}

    rows = _by_persona(args, _personas(args), measure)
    for name in ("four", "all"):
        print(name, "mean closed", round(statistics.fmean(row[name]["closed"] for row in rows), 3))


def expressed(args: argparse.Namespace) -> None:
    """Expressiveness of prompted answers, for the personas and for made-up adjectives."""

    def measure(engine: TransformersEngine, persona: Persona) -> dict[str, Any]:
        spec = FitSpec(persona, bank=_bank(args), config=FitConfig(held_out_queries=args.held_out))
        run, likelihoods = FitRun(engine, spec.config, lambda event: None), Likelihoods(engine)
        arena = Arena(run, SelfJudge(likelihoods), likelihoods)
        trial = Trial(tuple(of_split(make_samples(spec), "held_out")))
        prompted = arena.ask("evaluation", [PROMPT_ARM], [trial])[PROMPT_ARM.name, trial.situation.name]
        return dict(expressiveness(arena, trial, prompted) or {})

    made_up = [{"name": a, "preferred": a, "dispreferred": b} for a, b in _MADE_UP]
    _by_persona(args, [*_personas(args), *made_up], measure)


def _by_persona(
    args: argparse.Namespace,
    personas: Sequence[dict[str, Any]],
    measure: Callable[[TransformersEngine, Persona], dict[str, Any]],
) -> list[dict[str, Any]]:
    """One row per persona."""
    results = _results(args, len(personas))
    with _engine(args, args.dtype) as engine:
        for persona in personas:
            words = Persona(persona["preferred"], persona["dispreferred"])
            print(results.row({"persona": persona["name"]}, partial(measure, engine, words)), flush=True)
    return results.rows


def where(args: argparse.Namespace) -> None:
    """Measures one persona's chosen edit at temperatures 0 and 1 and in bfloat16, beside the default."""
    persona = _personas(args)[0]
    rows: dict[str, Any] = {}
    with _engine(args, args.dtype) as engine:
        profile, rows["fitted"] = fit(engine, persona, _bank(args), FitConfig(held_out_queries=args.held_out))
        for temperature in (0.0, 1.0):
            rows[f"temperature {temperature:g}"] = again(engine, profile, temperature)
    with _engine(args, "bfloat16") as engine:
        rows["bfloat16"] = again(engine, profile, profile.config.temperature)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    for name, row in rows.items():
        for s in row["situations"]:
            nets = f"over bare {s['net_over_bare']['net']:+.2f}, over prompt {s['net_over_prompt']['net']:+.2f}"
            repeats = f"repetition {s['arms']['edited']['repetition']:.2f} (bound {s['repetition_bound']:.2f})"
            print(f"{name}, {s['situation']}: {nets}, {repeats}, n {s['n']}")


def again(engine: TransformersEngine, profile: FittedProfile, temperature: float) -> dict[str, Any]:
    """The proof of a fitted profile's edit at another temperature or in another dtype."""
    run = FitRun(engine, replace(profile.config, temperature=temperature), lambda event: None)
    likelihoods = Likelihoods(engine)
    arena = Arena(run, SelfJudge(likelihoods), likelihoods)
    held_out, tune = (of_split(profile.samples, split) for split in ("held_out", "tune"))
    arena.ask("tuning", [BARE_ARM], [Trial(tuple(tune[-2:]))])  # first turns of the third-turn conversations
    return prove(arena, profile.candidate, held_out, lambda sample, dose: profile.plan(dose), tune=tune)


def _engine(args: argparse.Namespace, dtype: str) -> TransformersEngine:
    return TransformersEngine.load(args.model, dtype=dtype, threads=args.threads)


def _bank(args: argparse.Namespace) -> tuple[str, ...]:
    if args.queries is None:
        return queries_for(args.model)
    return tuple(text.strip() for text in args.queries.read_text().splitlines() if text.strip())


def _personas(args: argparse.Namespace) -> list[dict[str, Any]]:
    return [persona for persona in described() if not args.persona or persona["name"] in args.persona]


def _results(args: argparse.Namespace, total: int) -> Results:
    settings = {name: str(getattr(args, name)) for name in ("what", "model", "dtype", "queries", "held_out", "method")}
    return Results(args.out, settings, total)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("personas", "kl", "expressed", "where", "table"))
    parser.add_argument("--model", help="directory or hub id")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--persona", nargs="*", default=[], help="names; default: all of tests/personas")
    parser.add_argument("--queries", type=Path, help="file with one query per line; default: the shipped bank")
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "table":
        rows = json.loads(args.out.read_text())["rows"]
        print(table(rows), agreement(rows), sep="\n\n")
    else:
        {"personas": personas, "kl": kl, "expressed": expressed, "where": where}[args.what](args)


if __name__ == "__main__":
    main()
