"""Asks a running server many questions at once and reads the style of the answers. For persona-nano only:
its style scorer knows every sentence that the model was trained on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import aconnect_sse

from alignez_core.nano import NanoPersona
from alignez_core.nano.style import score_style
from cli.config import Connection
from cli.errors import CliError

#: Long enough for every answer of persona-nano, which are two to four sentences.
MAX_TOKENS = 64
TEMPERATURE = 0.8


@dataclass(frozen=True)
class StyleShares:
    """Shares of answers, 0 to 1.

    Args:
        preferred, dispreferred: in the persona's style, in the opposite one.
        unrecognised: in no style at all, which is where broken text shows.
    """

    preferred: float
    dispreferred: float
    unrecognised: float


def style_shares(persona: NanoPersona, answers: Sequence[str]) -> StyleShares:
    """How many of the answers are in which of the persona's two styles."""
    styles = [score_style(answer).style for answer in answers]
    count = max(1, len(styles))
    return StyleShares(
        preferred=styles.count(persona.preferred_style) / count,
        dispreferred=styles.count(persona.dispreferred_style) / count,
        unrecognised=styles.count(None) / count,
    )


def ask_all(
    connection: Connection,
    model: str,
    queries: Sequence[str],
    profiles: Mapping[str, str | None],
    concurrency: int,
    progress: Callable[[], None],
) -> dict[str, list[str]]:
    """Streamed answers of every query under every profile, the same seed per query.

    Args:
        profiles: label → profile name, None for the bare model. Their requests are mixed, as users' are.
        progress: called after each answer.
    Returns: label → answers in the queries' order.
    Raises: CliError: the server refused or went away.
    """
    return asyncio.run(_ask_all(connection, model, queries, profiles, concurrency, progress))


async def _ask_all(
    connection: Connection,
    model: str,
    queries: Sequence[str],
    profiles: Mapping[str, str | None],
    concurrency: int,
    progress: Callable[[], None],
) -> dict[str, list[str]]:
    places = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=connection.url,
        headers={"Authorization": f"Bearer {connection.key}"},
        timeout=httpx.Timeout(300.0),
        limits=limits,
        trust_env=False,
    ) as client:

        async def answer(query: str, seed: int, profile: str | None) -> str:
            body: dict[str, Any] = {
                "model": model,
                "messages": [{"role": "user", "content": query}],
                "temperature": TEMPERATURE,
                "max_tokens": MAX_TOKENS,
                "seed": seed,
                "stream": True,
            }
            if profile is not None:
                body["profile"] = {"name": profile}
            async with places:
                text = await _stream(client, body)
            progress()
            return text

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {label: [] for label in profiles}  # type: dict[str, list[asyncio.Task[str]]]
                for seed, query in enumerate(queries):
                    for label, profile in profiles.items():
                        tasks[label].append(group.create_task(answer(query, seed, profile)))
        except* (httpx.HTTPError, CliError) as errors:
            first = errors.exceptions[0]
            raise CliError(f"the measurement stopped: {first or type(first).__name__}") from None
    return {label: [task.result() for task in found] for label, found in tasks.items()}


async def _stream(client: httpx.AsyncClient, body: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    async with aconnect_sse(client, "POST", "/v1/chat/completions", json=body) as source:
        if source.response.status_code != 200:
            await source.response.aread()
            raise CliError(f"the server answered {source.response.status_code}: {source.response.text[:300]}")
        async for event in source.aiter_sse():
            if event.data == "[DONE]":
                break
            chunk = json.loads(event.data)
            if "error" in chunk:
                raise CliError(str(chunk["error"].get("message")))
            pieces += [choice["delta"].get("content") or "" for choice in chunk.get("choices", [])]
    return "".join(pieces)
