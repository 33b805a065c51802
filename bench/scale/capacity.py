"""Number of machines, from measured figures and assumptions: `python -m bench.scale.capacity [--users N] [--OPTION …]`.

The formulas of docs/capacity.md, whose first table has the results and whose second one explains the assumptions.
"""

from __future__ import annotations

import argparse
import math
from types import SimpleNamespace

#: Processor milliseconds are measured; the rest depends on your users, model and machines.
ASSUMED = {
    "profiles_per_user": 3, "answers_per_day": 20, "reads_per_day": 5, "fits_per_month": 1, "peak": 4,
    "utilisation": 0.6, "answer_tokens": 200, "gpu_tokens_s": 2500, "fit_generation": 0.59, "hidden": 4096,
    "layers": 8, "queries": 64, "neighbors": 10, "api_answer_ms": 16.9, "api_token_ms": 0.4, "api_read_ms": 12.6,
    "postgres_read_ms": 1.6, "postgres_resolve_ms": 2.5, "postgres_lookup_ms": 2.7, "postgres_job_ms": 29.0,
}  # fmt: skip


def needed(users: int, a: SimpleNamespace) -> dict[str, float]:
    """Resources that the users need at the peak; a count of machines is at least one."""
    answers = users * a.answers_per_day / 86_400 * a.peak
    reads = users * a.reads_per_day / 86_400 * a.peak
    fits = users * a.fits_per_month / 30 / 86_400
    side = a.layers * (4 + 2 * a.hidden)  # bytes of one query's side, as `profiles.vectors.pack` writes it
    texts = a.queries * 2 * (50 + 200) * 4  # characteristics and response of both sides, at their longest
    searched = a.queries * (4 * a.hidden + 4 * min(a.hidden, 256) + 100)  # embedding, sketch, text
    version = a.queries * 3 * side + searched + texts + a.layers * 3 * 4 * a.hidden + 16_000
    sent = a.neighbors * 2 * side
    read = sent + min(a.queries, max(64, 4 * a.neighbors)) * 4 * (a.hidden + 256)
    lookup_ms = (
        a.postgres_lookup_ms * sent / (10 * 2 * 5 * (4 + 2 * 4096))
    )  # it was measured at D = 4096, L = 5, K = 10
    fit_s = a.queries * 2 * (50 + 200) / a.gpu_tokens_s / a.fit_generation
    serving = max(1, math.ceil(answers * a.answer_tokens / a.gpu_tokens_s / a.utilisation))
    fitting = max(1, math.ceil(fits * fit_s / a.utilisation))
    control = max(1, math.ceil(reads * a.api_read_ms / 1e3 / a.utilisation))
    api_ms = answers * (a.api_answer_ms + a.api_token_ms * (a.answer_tokens - 1)) + reads * a.api_read_ms
    postgres_ms = answers * (a.postgres_resolve_ms + lookup_ms) + reads * a.postgres_read_ms + fits * a.postgres_job_ms
    return {
        "answers/s at the peak": answers,
        "profile reads/s at the peak": reads,
        "fits/s, mean of the month; as many broker messages/s": fits,
        "GPUs that serve": serving,
        "GPUs that fit": fitting,
        "cores of the API": api_ms / 1e3 / a.utilisation,
        "cores of Postgres": postgres_ms / 1e3 / a.utilisation,
        "profiles": users * a.profiles_per_user,
        "fit queries": users * a.profiles_per_user * a.queries,
        "bytes stored in Postgres": users * a.profiles_per_user * version,
        "bytes/s read by lookups and sent": answers * sent,
        "8 KiB pages/s read by lookups": answers * read / 8192,
        "connections to Postgres at the pools' limit": (control + serving + fitting + 2) * 16,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000, help="default %(default)s")
    for name, value in ASSUMED.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help="default %(default)s")
    given = vars(parser.parse_args())
    for what, amount in needed(given.pop("users"), SimpleNamespace(**given)).items():
        print(f"{what}: {amount:,.4g}" if amount < 1e4 else f"{what}: {amount:,.0f}")
