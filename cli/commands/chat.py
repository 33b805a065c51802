"""`alignez chat`: talk to the model, personalised or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli.client import ApiError, Client
from cli.shell import DataDirOption, KeyOption, UrlOption, connect, err, out


def chat(
    profile: Annotated[
        str | None, typer.Option(help="Profile, by name; name:alias or name#version. The bare model by default.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this once and end, instead of a conversation.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Speak as this end user, with their assigned profile.")] = None,
    strength: Annotated[float | None, typer.Option(min=0.0, max=8.0, help="Dose of the profile.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0: always the likeliest token.")] = 0.8,
    seed: Annotated[int | None, typer.Option(help="Makes the answer repeatable.")] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Talk to the model; with --profile, as that profile makes it. /quit or Ctrl-D ends."""
    with connect(url, key, data_dir) as client:
        body: dict[str, Any] = {"model": client.base_model(), "max_tokens": max_tokens, "temperature": temperature}
        if seed is not None:
            body["seed"] = seed
        if profile is not None:
            body["profile"] = profile_choice(profile, strength)
        turns: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        if message is not None:
            _say(client, body, [*turns, {"role": "user", "content": message}], user)
            return
        for question in _questions():
            turns.append({"role": "user", "content": question})
            answer = _say_shortening(client, body, turns, user)
            turns.append({"role": "assistant", "content": answer})


def profile_choice(text: str, strength: float | None = None) -> dict[str, Any]:
    """`name`, `name:alias` or `name#version` as the request's `profile` field."""
    choice: dict[str, Any]
    name, hash_, version = text.partition("#")
    if hash_ and version.isdigit():
        choice = {"name": name, "version": int(version)}
    else:
        name, colon, alias = text.partition(":")
        choice = {"name": name, "alias": alias} if colon and alias else {"name": text}
    if strength is not None:
        choice["strength"] = strength
    return choice


def _questions() -> Iterator[str]:
    while True:
        try:
            question = out.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if question in ("/quit", "/exit"):
            return
        if question:
            yield question


def _say_shortening(client: Client, body: dict[str, Any], turns: list[dict[str, str]], user: str | None) -> str:
    """Answer a conversation, forgetting its oldest turns where the model's context is too short for all of it."""
    while True:
        try:
            return _say(client, body, turns, user)
        except ApiError as error:
            first = 1 if turns[0]["role"] == "system" else 0
            if error.code != "context_length_exceeded" or len(turns) - first < 3:
                raise
            del turns[first : first + 2]
            err.print("(the oldest turn is forgotten: the conversation is over the model's context)", style="dim")


def _say(client: Client, body: dict[str, Any], turns: list[dict[str, str]], user: str | None) -> str:
    pieces = []
    applied: dict[str, Any] = {}
    for chunk in client.chat({**body, "messages": turns}, user):
        for choice in chunk.get("choices", []):
            piece = choice.get("delta", {}).get("content") or ""
            pieces.append(piece)
            out.print(piece, end="", markup=False)
        applied = chunk.get("alignez") or applied
    out.print()
    if applied.get("reason") == "no_default_version":
        err.print(f"(the bare model: profile {applied['profile']} has no default version)", style="dim", markup=False)
    return "".join(pieces)
