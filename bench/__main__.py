"""`python -m bench [NAME …]`: runs the named measurements (default: all), prints tables, writes artifacts/bench/*.json.

Every comparison happens within one run, because these figures are ratios on noisy machines.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

NAMES = ("fit", "engine", "lookup", "service")
OUT = Path("artifacts/bench")


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the JSON files (default %(default)s)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown measurement {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        report = importlib.import_module(f"bench.{name}").run()
        report.print()
        print(f"written to {report.save(arguments.out)}")


if __name__ == "__main__":
    main()
