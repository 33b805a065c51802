"""How long a fit takes on persona-nano, and where the time goes: `python -m bench.fit`.

Floor: the tokens that have to be generated, at the engine's own speed, plus one forward pass per text whose
representation is read (prefill speed). Everything that is neither is ours to keep small.
"""

from __future__ import annotations

import time

from alignez_core import nano
from alignez_core.engines.transformers_engine import TransformersEngine
from alignez_core.fit import FitConfig, FitQuery, FitSpec, Persona, fit_profile
from bench.report import Report

QUERIES = 64
REPEATS = 3
MODEL_STAGES = ("characteristics", "responses", "representations", "evaluation")


def run() -> Report:
    """Fits the first shipped persona `REPEATS` times; the median run is reported."""
    engine = TransformersEngine.load(nano.MODEL_DIR)
    first = nano.PERSONAS[0]
    spec = FitSpec(
        Persona(first.preferred, first.dispreferred),
        tuple(FitQuery(text) for text in nano.query_bank()[:QUERIES]),
        (),
        FitConfig(),
    )
    fit_profile(engine, spec)  # warm-up
    runs = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        fitted = fit_profile(engine, spec)
        runs.append((time.perf_counter() - started, fitted))
    engine.close()
    total, fitted = sorted(runs, key=lambda run: run[0])[REPEATS // 2]
    attempt = fitted.diagnostics["last_attempt"]
    seconds = attempt["seconds"]
    generation = seconds["characteristics"] + seconds["responses"]
    model = sum(seconds[stage] for stage in MODEL_STAGES)
    report = Report("fit", f"persona-nano, {QUERIES} queries, transport, median of {REPEATS} fits")
    report.add("persona to fitted profile", total, "s", "≤ 30")
    for stage, value in seconds.items():
        report.add(f"  {stage}", value, "s")
    report.add("tokens generated", attempt["tokens_generated"], "tokens")
    report.add("everything but generation ÷ whole fit", 1 - generation / total, "", "≤ 0.10")
    report.add("  that is", total - generation, "s")
    report.add("all forward passes ÷ whole fit", model / total, "")
    return report


if __name__ == "__main__":
    run().print()
