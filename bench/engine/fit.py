"""Duration of a fit from persona to proven version, by stage: `python -m bench.engine.fit [--quick] [MODEL_DIR]`.

The lower bound is the model's own work: the tokens that have to be generated, and a forward pass for each text that is
read, fitted on or scored. Everything else is ours and must stay small.
"""

from __future__ import annotations

import time

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import fit_profile
from alignez_core.models import persona_nano
from alignez_core.query_bank import queries_for
from alignez_core.spec.persona import FitSpec, Persona
from bench.report import Report, options


def run(quick: bool = False, model: str | None = None) -> Report:
    """Fits one persona with the default settings: three times on persona-nano (median), once on another model."""
    path = model or str(persona_nano.MODEL_DIR)
    repeats = 1 if model or quick else 3
    persona = Persona("swashbuckling pirate", "plain and ordinary") if model else Persona("cheerful", "gloomy")
    spec = FitSpec(persona, bank=queries_for(path))
    runs = []
    with TransformersEngine.load(path) as engine:
        for _ in range(repeats):
            started, processor = time.perf_counter(), time.thread_time()
            fitted = fit_profile(engine, spec)
            # The engine has threads of its own; this thread computes everything but the model's work.
            runs.append((time.perf_counter() - started, time.thread_time() - processor, fitted))
        dtype = engine.info.dtype
    total, beside, fitted = sorted(runs, key=lambda found: found[0])[repeats // 2]
    attempt = fitted.diagnostics["last_attempt"]
    report = Report("fit", f"{path.rsplit('/', 1)[-1]}, {dtype}, default settings, median of {repeats} fits")
    report.add("persona to proven version", total, unit="s", most=90 if model else 20)
    for stage, value in attempt["seconds"].items():
        report.add(f"  {stage}", value, unit="s")
    report.add("tokens generated", attempt["tokens_generated"], unit="tokens")
    report.add("model's work ÷ whole fit", 1 - beside / total, least=0.95)
    return report


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("model", nargs="?")
    given = parser.parse_args()
    run(given.quick, given.model).show(given.out)
