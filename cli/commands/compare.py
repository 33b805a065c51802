"""`alignez compare`: answers of the bare model, of the persona as a prompt and of profiles, side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cli.client import Client, chat_path, profile_choice, profile_path
from cli.commands.chat import MaxTokensOption, TemperatureOption
from cli.shell import connected, new_console, print_json


def compare(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.")],
    profiles: Annotated[
        list[str], typer.Option("--profile", help="Profile: name, name:alias or name#version; may be repeated.")
    ],
    strength: Annotated[float | None, typer.Option(min=0.0, max=8.0, help="Dose of the profiles.")] = None,
    max_tokens: MaxTokensOption = 96,
    temperature: TemperatureOption = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every answer.")] = 0,
) -> None:
    """Answer one question with the bare model, the first profile's persona as a prompt, and each profile.

    All answers are sampled with the same seed.

    Example: alignez compare "How do I start hiking?" --profile cheerful
    """
    settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    messages = [{"role": "user", "content": question}]
    choices = [profile_choice(text, strength) for text in profiles]
    with connected(context) as (shell, client):
        answer = client.call("POST", "/v1/compare", {"messages": messages, "profiles": choices, **settings})
        bare, *personalised = ({"name": one["name"], "text": one["text"]} for one in answer["columns"])
        persona = _persona_text(client, choices[0])
        columns = [bare]
        if persona is not None:
            system = {"role": "system", "content": persona}
            body = {"model": "base", "messages": [system, *messages], **settings}
            reply = client.call("POST", chat_path(None), body)
            columns.append({"name": "prompt", "text": reply["choices"][0]["message"]["content"]})
        columns += personalised
    if shell.as_json:
        print_json({"question": question, "seed": seed, "columns": columns})
        return
    table = Table(show_lines=True, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for column in columns:
        table.add_row(Text(column["name"]), Text(column["text"].strip()))
    new_console().print(table)


def _persona_text(client: Client, choice: dict[str, Any]) -> str | None:
    """The persona of a profile as a system message; None for a profile from queries or pairs alone."""
    from alignez_core.prompts import persona_text
    from alignez_core.spec.persona import Persona

    path = profile_path(choice["name"])
    number = choice.get("version")
    if number is None:
        aliases = client.call("GET", path)["aliases"]
        # The version with the largest share of an alias: versions differ in their fits, rarely in their personas.
        targets: dict[str, float] = aliases.get(choice.get("alias", "default")) or {}
        number = max(targets, key=lambda one: targets[one], default=None)
    if number is None:
        return None
    persona = client.call("GET", f"{path}/versions/{number}")["spec"].get("persona")
    if not persona or not persona.get("preferred"):
        return None
    return persona_text(Persona(**persona), "help")
