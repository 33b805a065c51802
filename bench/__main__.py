"""`python -m bench [NAME …] [--quick]`: runs the named measurements (default: all), writes artifacts/bench/*.json.

All sides of a comparison are measured within one run, because on noisy machines only ratios are reliable.
"""

from __future__ import annotations

import importlib

from bench.report import options

MODULES = {
    "fit": "bench.engine.fit",
    "engine": "bench.engine.throughput",
    "lookup": "bench.service.lookup",
    "service": "bench.service.overhead",
    "burst": "bench.service.burst",
    "tenancy": "bench.service.tenancy",
}


def main() -> None:
    """Runs and reports."""
    parser = options(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}; default: all")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(MODULES)):
        parser.error(f"unknown measurement {unknown[0]!r}; there are {', '.join(MODULES)}")
    for name in given.names or MODULES:
        importlib.import_module(MODULES[name]).run(given.quick).show(given.out)


if __name__ == "__main__":
    main()
