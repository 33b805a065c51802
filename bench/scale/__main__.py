"""The service with the data of many users: `python -m bench.scale [reads] [replicas] [plans] [workers] [--quick]`.

The embedded Postgres holds 10 profiles for each of many tenants. `reads`: latency over HTTP; `replicas`: 1, 2 and 3 API
processes; `plans`: the plan of every hot statement; `workers`: 1, 2 and 3 workers, on a separate database.
"""

from __future__ import annotations

from bench.processes import database
from bench.report import options
from bench.scale import load, plans, workers
from bench.scale.fill import HIDDEN_SIZE, LAYERS, QUERIES, callers, fill
from telemetry.logs import configure_logs

PARTS = ("reads", "replicas", "plans", "workers")


def main() -> None:
    """The command line."""
    parser = options(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--profiles", type=int, default=100_000, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load of replicas (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=60, help="for each number of workers (default %(default)s)")
    given = parser.parse_args()
    parts = given.parts or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    configure_logs("warning", "json")
    profiles, seconds, jobs, requests = given.profiles, given.seconds, given.jobs, 600
    if given.quick:
        profiles, seconds, jobs, requests = 200, 0.5, 6, 50
    if set(parts) != {"workers"}:
        title = f"{profiles:,} profiles, {profiles * QUERIES:,} fit queries (D={HIDDEN_SIZE}, L={LAYERS})"
        with database() as data:
            fill(data, profiles)
            keys = list(callers(data.sessions, 200))
            if "reads" in parts:
                load.reads(data, keys, requests, title).show(given.out)
            if "replicas" in parts:
                load.replicas(data, keys, seconds, title).show(given.out)
            if "plans" in parts:  # last, because it leaves jobs that wait
                plans.run(data, title).show(given.out)
    if "workers" in parts:
        workers.run(jobs).show(given.out)


if __name__ == "__main__":
    main()
