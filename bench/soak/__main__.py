"""`python -m bench.soak [--minutes 30] [--engine vllm] [--quick]`: exit code 1 when a bound is missed."""

from __future__ import annotations

import sys

from bench.report import options
from bench.soak.judge import QUICK, Options, judge
from bench.soak.run import run


def main() -> None:
    """The command line."""
    default = Options()
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=default.minutes, help="of load (default %(default)s)")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default=default.engine)
    parser.add_argument("--streams", type=int, default=default.streams, help="requests in flight (default %(default)s)")
    given = parser.parse_args()
    chosen = QUICK if given.quick else Options(given.minutes, given.engine, given.streams)
    try:
        report = judge(run(chosen, given.out / "soak-logs"))
    except KeyboardInterrupt:
        print("stopped; nothing is left running", file=sys.stderr)
        sys.exit(130)
    report.show(given.out)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
