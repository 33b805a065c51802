"""From measured figures and named assumptions to machines: `python -m bench.capacity [--users 1000 100000 10000000]`.

Prints the first table of docs/capacity.md; `--write` puts it there and draws docs/capacity.svg. Every assumption is an
option (`--help`), so that table and picture are those of your users, your model and your GPUs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

DAY_S = 86_400
PAGE, PICTURE = Path("docs/capacity.md"), Path("docs/capacity.svg")
_BEGIN, _END = "<!-- made by `python -m bench.capacity --write` -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Assumed:
    """What we cannot know: your users, your model, your GPUs. Each is an option of the same name."""

    profiles_per_user: float = 3
    answers_per_day: float = 20  #: of one user, all with a sample-conditional profile (the dearest kind)
    reads_per_day: float = 5  #: of one user: lists of profiles and single ones
    fits_per_month: float = 1  #: of one user
    peak: float = 4  #: busiest moment ÷ mean of the day; answers and reads only, fits may wait
    utilisation: float = 0.6  #: of GPUs, cores and connections at the busiest moment
    answer_tokens: float = 200
    gpu_tokens_s: float = 2500  #: of one serving replica with a full batch. Not measured by us on any GPU
    fit_generation: float = 0.59  #: share of a fit that is generation, as on persona-nano (README)
    hidden: int = 4096  #: D
    layers: int = 8  #: L, edited ones
    queries: int = 64  #: N of one version
    neighbors: int = 10  #: K
    server_cores: float = 32  #: of one large Postgres server, as are the next four
    server_storage: float = 10e12  #: bytes
    server_pages_s: float = 500_000  #: reads of 8 KiB from its disks
    server_sent_s: float = 3e9  #: bytes through its network
    server_connections: float = 500
    query_bytes: float = 100  #: text of one fit query
    token_bytes: float = 4  #: text of one token


@dataclass(frozen=True)
class Measured:
    """Of one request or job, milliseconds of a processor; where from is in docs/capacity.md."""

    api_answer: float = 16.9  #: sample-conditional, one token
    api_token: float = 0.4  #: each further token; with the model-free engine's own threads, so the upper end
    api_read: float = 12.6
    postgres_read: float = 1.6
    postgres_resolve: float = 2.5  #: all statements of a sample-conditional answer, at D = 64
    postgres_lookup: float = 2.7  #: more for the wide rows at D = 4096, L = 5, K = 10
    worker_job: float = 206.0
    relay_job: float = 4.2
    postgres_job: float = 29.0


@dataclass(frozen=True)
class Bytes:
    """What one version occupies, from the tables' columns; without page headers and indexes."""

    representations: float
    queries: float
    pairs: float
    directions: float
    rest: float = 16_000  #: version, job, some twenty events, audit: measured at 10 queries

    @property
    def total(self) -> float:
        return self.representations + self.queries + self.pairs + self.directions + self.rest


def version_bytes(a: Assumed) -> Bytes:
    """One version with N queries at L layers of D numbers."""
    value = packed(a)
    return Bytes(
        representations=a.queries * 3 * value,  # help, harm, plain
        queries=a.queries * (4 * a.hidden + 4 * min(a.hidden, 256) + a.query_bytes),  # float32: embedding and sketch
        pairs=a.queries
        * 2
        * (50 + 200)
        * a.token_bytes,  # characteristics and response of both sides, at their longest
        directions=a.layers * 3 * 4 * a.hidden,  # help, harm, theta: float32
    )


def packed(a: Assumed) -> float:
    """One side of one query, as `profiles.vectors.pack` writes it: per layer a float32 and D numbers of two bytes."""
    return a.layers * (4 + 2 * a.hidden)


def lookup_bytes(a: Assumed) -> tuple[float, float]:
    """(bytes that Postgres sends, bytes that it reads) for one sample-conditional answer.

    It sends two of three sides of K queries; to find them it reads the embeddings of at most 64 candidates as well.
    """
    sent = a.neighbors * 2 * packed(a)
    return sent, sent + min(a.queries, max(64, 4 * a.neighbors)) * 4 * (a.hidden + 256)


@dataclass(frozen=True)
class Needed:
    """What so many users need at their busiest moment."""

    users: int
    answers_s: float
    reads_s: float
    fits_s: float
    serving_gpus: int
    fitting_gpus: int
    api_cores: float
    postgres_cores: float
    worker_cores: float
    fit_queries: float
    stored: float
    sent_s: float
    pages_s: float
    connections: int


def needed(users: int, a: Assumed, m: Measured) -> Needed:
    """By plain proportion; a count is never below one."""
    answers = users * a.answers_per_day / DAY_S * a.peak
    reads = users * a.reads_per_day / DAY_S * a.peak
    fits = users * a.fits_per_month / 30 / DAY_S
    fit_s = a.queries * 2 * (50 + 200) / a.gpu_tokens_s / a.fit_generation
    sent, read = lookup_bytes(a)
    lookup = m.postgres_lookup * sent / (10 * 2 * 5 * (4 + 2 * 4096))
    serving = _count(answers * a.answer_tokens / a.gpu_tokens_s / a.utilisation)
    fitting = _count(fits * fit_s / a.utilisation)
    api = (answers * (m.api_answer + m.api_token * (a.answer_tokens - 1)) + reads * m.api_read) / 1e3
    control = _count(reads * m.api_read / 1e3 / a.utilisation)
    postgres = (answers * (m.postgres_resolve + lookup) + reads * m.postgres_read + fits * m.postgres_job) / 1e3
    versions = users * a.profiles_per_user
    return Needed(
        users=users,
        answers_s=answers,
        reads_s=reads,
        fits_s=fits,
        serving_gpus=serving,
        fitting_gpus=fitting,
        api_cores=api / a.utilisation,
        postgres_cores=postgres / a.utilisation,
        worker_cores=fits * (m.worker_job + m.relay_job) / 1e3 / a.utilisation,
        fit_queries=versions * a.queries,
        stored=versions * version_bytes(a).total,
        sent_s=answers * sent,
        pages_s=answers * read / 8192,
        connections=(control + serving + fitting + 2) * 16,
    )


def table(users: Sequence[int], a: Assumed, m: Measured) -> str:
    """The page's first table, in Markdown."""
    found = [needed(count, a, m) for count in users]
    rows: list[tuple[str, list[str]]] = [
        ("end users", [f"**{_number(n.users)}**" for n in found]),
        ("answers/s · profile reads/s at the peak", [f"{_number(n.answers_s)} · {_number(n.reads_s)}" for n in found]),
        ("fits/s, mean of the month", [_number(n.fits_s) for n in found]),
        ("GPUs that serve (one inference API each)", [_number(n.serving_gpus) for n in found]),
        ("GPUs that fit (one worker each)", [_number(n.fitting_gpus) for n in found]),
        ("cores of the API, control and inference", [_number(n.api_cores) for n in found]),
        ("cores of Postgres", [_number(n.postgres_cores) for n in found]),
        (
            "profiles · fit queries",
            [f"{_number(n.users * a.profiles_per_user)} · {_number(n.fit_queries)}" for n in found],
        ),
        ("stored in Postgres", [_bytes(n.stored) for n in found]),
        ("read by lookups and sent", [f"{_bytes(n.sent_s)}/s" for n in found]),
        ("8 KiB pages read by lookups", [f"{_number(n.pages_s)}/s" for n in found]),
        ("connections to Postgres at the pools' limit", [_number(n.connections) for n in found]),
        ("broker messages/s", [_number(n.fits_s) for n in found]),
    ]
    head, *rest = (f"| {name} | {' | '.join(cells)} |" for name, cells in rows)
    return "\n".join([head, "|---" * (len(users) + 1) + "|", *rest]) + "\n"


def shares(n: Needed, a: Assumed) -> dict[str, float]:
    """What so many users need ÷ what one large Postgres server gives: the first to pass 1 is the first bottleneck."""
    return {
        "connections, no pooler": n.connections / a.server_connections,
        "storage": n.stored / a.server_storage,
        "pages read, nothing cached": n.pages_s / a.server_pages_s,
        "network": n.sent_s / a.server_sent_s,
        "processor": n.postgres_cores / a.server_cores,
    }


def reach(a: Assumed, m: Measured) -> dict[str, float]:
    """End users at which each of the shares passes 1."""
    names = shares(needed(1, a, m), a)
    found = {}
    for name in names:
        low, high = 1.0, 1e12
        while high / low > 1.0001:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if shares(needed(int(middle), a, m), a)[name] < 1 else (low, middle)
        found[name] = low
    return found


def draw(a: Assumed, m: Measured, out: Path) -> None:
    """The shares of one Postgres server by number of end users."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "alignez"
    users = [round(10 ** (3 + i / 12)) for i in range(49)]
    found = [shares(needed(count, a, m), a) for count in users]
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    for name, at in sorted(reach(a, m).items(), key=lambda item: item[1]):
        label = f"{name}: {_number(float(f'{at:.2g}'))} users"
        axes.loglog(users, [one[name] for one in found], linewidth=2, label=label)
    axes.axhline(1, color="#55555a", linewidth=1, linestyle="--")
    axes.set_xlabel("end users")
    axes.set_ylabel("needed ÷ one large Postgres server")
    axes.set_ylim(1e-4, 100)
    axes.grid(color="#e5e5ea")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="passes 1 at", fontsize=9, frameon=False)
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def _count(value: float) -> int:
    return max(1, math.ceil(value))


def _number(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size and (value >= 1e4 or value % size == 0):
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _bytes(value: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def main() -> None:
    """Prints the table, or puts it into the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[1_000, 100_000, 10_000_000])
    parser.add_argument("--write", action="store_true", help=f"into {PAGE}, and draw {PICTURE}")
    for kind in (Assumed, Measured):
        for field in fields(kind):
            name = field.name.replace("_", "-")
            parser.add_argument(f"--{name}", type=float, default=field.default, help="default %(default)s")
    given = vars(parser.parse_args())
    assumed = Assumed(**{field.name: given[field.name] for field in fields(Assumed)})
    measured = Measured(**{field.name: given[field.name] for field in fields(Measured)})
    made = table(given["users"], assumed, measured)
    if given["write"]:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
        draw(assumed, measured, PICTURE)
    print(made, end="")


def replaced(page: str, made: str) -> str:
    """The page with this table between its marks. Raises: ValueError: it has no marks."""
    begin, end = page.index(_BEGIN) + len(_BEGIN), page.index(_END)
    return page[:begin] + made + page[end:]


if __name__ == "__main__":
    main()
