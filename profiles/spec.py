"""Specs from callers: limits, names, and the normal form in which specs are stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from profiles.errors import InvalidSpec, NotFound
from profiles.text import storable, unstorable

NAME_LIMIT = 64
PHRASE_LIMIT = 200
DESCRIPTION_LIMIT = 2_000
QUERIES_LIMIT = 2_000
TEXT_LIMIT = 8_000
#: One side of a ground-truth pair.
ANSWER_LIMIT = 16_000
#: All texts of one spec together; bounds the memory and the row of a request.
TOTAL_LIMIT = 4_000_000
USER_LIMIT = 200

#: Characters of an end user's id, see `check_end_user`.
END_USER_PATTERN = r"^[^\x00-\x1f\x7f/]+$"

#: The method of a spec without one.
DEFAULT_METHOD = "auto"

#: No "@", ":" and "#": they separate the parts of `base@profile:alias` and `base@profile#3`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_END_USER = re.compile(END_USER_PATTERN)
#: Not all time zones can express a time outside: the year of a local Python datetime is 1 to 9999.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


def check_name(field: str, name: str) -> str:
    """Checks the name of a profile or alias. Raises: InvalidSpec: empty, too long, or with other characters."""
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_LIMIT or not _NAME.match(name):
        raise InvalidSpec(
            field, f"must be 1 to {NAME_LIMIT} of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
        )
    if parse_id(name) is not None:
        raise InvalidSpec(field, "must not look like an id")
    return name


def check_end_user(end_user: str) -> str:
    """Checks an end user's id, which must be one segment of a path.

    An encoded slash (%2F) is not allowed, because servers and proxies decode it before they split the path; "." and
    ".." are not, because clients remove them.

    Raises: InvalidSpec: blank, too long, or not one segment.
    """
    check_text("user", end_user, USER_LIMIT)
    if end_user in (".", "..") or not _END_USER.fullmatch(end_user):
        raise InvalidSpec("user", "must not be '.' or '..' nor contain '/' or control characters: it stands in paths")
    return end_user


def check_text(field: str, text: object, limit: int) -> str:
    """Checks a text. Raises: InvalidSpec: not text, blank, over `limit` characters, or not storable in Postgres."""
    if not isinstance(text, str):
        raise InvalidSpec(field, "must be text")
    if not text.strip():
        raise InvalidSpec(field, "must not be empty")
    if len(text) > limit:
        raise InvalidSpec(field, f"has {len(text)} characters, the limit is {limit}")
    problem = unstorable(text)
    if problem is not None:
        raise InvalidSpec(field, problem)
    return text


def check_time(field: str, time: datetime) -> datetime:
    """Checks a time; returns it in UTC. Raises: InvalidSpec: no time zone, or not expressible in all of them."""
    if time.tzinfo is None:
        raise InvalidSpec(field, "must have a time zone")
    if not _EARLIEST <= time < _LATEST:
        raise InvalidSpec(field, f"must be from {_EARLIEST.date()} to before {_LATEST.date()} (UTC)")
    return time.astimezone(UTC)


def user_digest(tenant_id: UUID, end_user: str) -> str:
    """An end user as the audit log names them: recognised by whoever knows the id, and gone when nobody does."""
    return hashlib.sha256(f"{tenant_id}/{end_user}".encode("utf-8", "surrogatepass")).hexdigest()


def parse_id(ref: str) -> UUID | None:
    """The UUID in a path segment, or None if the segment is a name."""
    try:
        return UUID(ref)
    except ValueError:
        return None


def profile_ref(profile: UUID | str) -> UUID | str:
    """The id or name in a text. Raises: NotFound: it is neither."""
    ref = profile if isinstance(profile, UUID) else parse_id(profile) or profile
    if isinstance(ref, str) and unstorable(ref) is not None:
        raise NotFound("profile", storable(ref))
    return ref


def normal_spec(spec: Mapping[str, Any], parent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The spec as stored with a version: persona, queries, pairs, fit.

    Args:
        spec: any of the four fields, whose shapes and lengths the caller has checked.
        parent: spec of the previous version. It supplies missing fields, and missing settings of `fit` unless the
            method changes, because settings belong to a method. A setting of None is reset to its default, except
            `steps`, where None is a value: no end.
    Raises: InvalidSpec: nothing to fit on, or more than all texts of a spec together may have.
    """
    before = parent or {"persona": None, "queries": [], "pairs": [], "fit": {}}
    merged = {name: value if spec.get(name) is None else spec[name] for name, value in before.items()}
    given = spec.get("fit") or {}
    fit = {**_inherited(before["fit"], given), **given}
    merged["fit"] = {name: value for name, value in fit.items() if value is not None or name == "steps"}
    queries, pairs = merged["queries"], merged["pairs"]
    if len(queries) + len(pairs) > QUERIES_LIMIT:
        raise InvalidSpec(
            "queries" if queries else "pairs",
            f"{len(queries)} queries and {len(pairs)} pairs, the limit is {QUERIES_LIMIT} in all",
        )
    if merged["persona"] is None and not queries and not pairs:
        raise InvalidSpec("persona", "a persona, queries or pairs are needed")
    total = sum(len(text) for row in (*queries, *pairs) for text in row.values() if text)
    if total > TOTAL_LIMIT:
        raise InvalidSpec("queries", f"hold {total} characters, the limit is {TOTAL_LIMIT} in all")
    return merged


def check_layers(fit: Mapping[str, Any], n_layers: int, model: str) -> None:
    """Checks `fit.layers`. Raises: InvalidSpec: the base model has no such layers, or fewer."""
    layers = fit.get("layers")
    if isinstance(layers, int) and layers > n_layers:
        raise InvalidSpec("fit.layers", f"{layers} layers are asked for, {model} has {n_layers}")
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        outside = [layer for layer in layers if isinstance(layer, int) and layer >= n_layers]
        if outside:
            raise InvalidSpec("fit.layers", f"layer {outside[0]} does not exist, {model} has 0 to {n_layers - 1}")


def uses_bank(spec: Mapping[str, Any]) -> bool:
    """True if a stored spec has no queries, so that it is fitted on the worker's query bank."""
    return not spec["queries"] and not spec["pairs"]


#: Settings with the same meaning for every method. Others are not inherited when the method changes.
_SHARED_SETTINGS = (
    "seed", "temperature", "judge", "judge_fallback", "query_encoder", "tune_queries", "held_out_queries",
)  # fmt: skip


def _inherited(before: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that a new version's fit inherits."""
    if "method" not in given or (given["method"] or DEFAULT_METHOD) == before.get("method", DEFAULT_METHOD):
        return before
    return {name: value for name, value in before.items() if name in _SHARED_SETTINGS}
