"""How long a fit takes, persona to proven version, and where the time goes: `python -m bench.fit [MODEL_DIR]`.

Floor: the tokens that have to be generated, at the engine's own speed, plus one forward pass per text that is read,
fitted on or scored. Everything that is neither is ours to keep small.
"""

from __future__ import annotations

import sys
import time

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import FitSpec, Persona, fit_profile
from alignez_core.models import persona_nano
from alignez_core.query_bank import queries_for
from bench.report import Report

REPEATS = 3


def run(model: str | None = None) -> Report:
    """Fits one persona with the default settings, `REPEATS` times on nano and once on another model; the median."""
    path = model or str(persona_nano.MODEL_DIR)
    repeats = 1 if model else REPEATS
    persona = Persona("swashbuckling pirate", "plain and ordinary") if model else Persona("cheerful", "gloomy")
    spec = FitSpec(persona, bank=queries_for(path))
    runs = []
    with TransformersEngine.load(path) as engine:
        for _ in range(repeats):
            started, processor = time.perf_counter(), time.thread_time()
            fitted = fit_profile(engine, spec)
            # The engine has threads of its own; what this one computes is everything but the model's work.
            runs.append((time.perf_counter() - started, time.thread_time() - processor, fitted))
        dtype = engine.info.dtype
    total, beside, fitted = sorted(runs, key=lambda found: found[0])[repeats // 2]
    attempt = fitted.diagnostics["last_attempt"]
    report = Report("fit", f"{path.rsplit('/', 1)[-1]}, {dtype}, default settings, median of {repeats} fits")
    report.add("persona to proven version", total, "s", "≤ 90" if model else "≤ 20")
    for stage, value in attempt["seconds"].items():
        report.add(f"  {stage}", value, "s")
    report.add("tokens generated", attempt["tokens_generated"], "tokens")
    report.add("model's work ÷ whole fit", 1 - beside / total, "", "≥ 0.95")
    return report


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else None).print()
