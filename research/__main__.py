"""The short form of every experiment, one after the other: half an hour for a model of 135 M parameters on 2 cores.

    python -m research --model DIR --data DIR --out artifacts/research/short

Few queries and one seed: enough to see that all of it runs and where effects are large, too little for small ones. Each
experiment alone (`python -m research.table1 --help`) takes more; docs/research.md says what that costs. Interrupted, it
goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from research import theorem
from research.lab import ModelSource

#: Experiment → options of the short form; those of personas are shortened by `_PERSONAS`.
SHORT: dict[str, list[str]] = {
    "table1": ["--queries", "4", "--pairs", "60"],
    "table2": ["--queries", "2"],
    "figure3": ["--queries", "2", "--shares", "1", "--max-length", "192"],
    "figure4": ["--queries", "3", "--neighbors", "3", "10", "20", "--layers", "1", "5", "10", "20"],
    "steps": ["--queries", "2", "--schedules", "all", "first 1", "first 8", "every 2nd", "decay 8"],
    "predictor": ["--queries", "6"],
    "axbench": ["--queries", "6"],
    "persona_vectors": ["--queries", "6"],
}
#: Of every experiment. λ is given, because its choice takes most of the time.
_SHORTER = ["--fit-queries", "16", "--tune-queries", "4", "--contrast", "1", "--answer-tokens", "40"]
#: Number of personas of the experiments that go through personas.
_PERSONAS = {"predictor": 2, "axbench": 2, "persona_vectors": 2}


def main() -> int:
    """The command line; the number of experiments that failed is the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m research", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="persona-nano", help="directory, hub id or catalogue name")
    parser.add_argument("--data", type=Path, help="folder of query sets (docs/research.md); default: the model's bank")
    parser.add_argument("--only", nargs="+", choices=list(SHORT), default=list(SHORT), metavar="NAME")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("artifacts/research/short"))
    given = parser.parse_args()
    common = ["--model", given.model, "--out", str(given.out)]
    for name in ("data", "threads"):
        if getattr(given, name) is not None:
            common += [f"--{name}", str(getattr(given, name))]
    print(f"{ModelSource.of(given.model).key}: {', '.join(given.only)}, theorem", flush=True)
    failed, began = [], time.monotonic()
    for name in given.only:
        since = time.monotonic()
        print(f"\n## {name}\n", flush=True)
        try:
            module = importlib.import_module(f"research.{name}")
            options = module.options().parse_args([*common, *_SHORTER, *SHORT[name]])
            if name in _PERSONAS:
                from research.personas import styled_personas

                options.personas = [each.name for each in styled_personas(given.model)[: _PERSONAS[name]]]
            module.run(options)
        except SystemExit as stop:  # says what is missing, such as pairs without --data
            print(stop, flush=True)
        except Exception:  # the others are worth having; the trace says what to mend
            traceback.print_exc()
            failed.append(name)
        minutes, total = (time.monotonic() - since) / 60, (time.monotonic() - began) / 60
        print(f"{name}: {minutes:.1f} min, {total:.1f} min in all", flush=True)
    theorem.main(["--out", str(given.out)])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
