"""The prompts that let a model describe and show a behaviour, and the formats that end them.

Source: AlignEZ (arXiv 2406.03642), appendix A.4.1. Deviations: the two adjectives are parameters
(`Persona.preferred`, `Persona.dispreferred`), a free-text description may join the preferred side, and the
prompt's end (the *answer cue*) belongs to the base model's `PromptFormat`, so that fit and inference read
the same last token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Side = Literal["help", "harm"]
SIDES: tuple[Side, ...] = ("help", "harm")
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}

PLAIN_CUE = "\nAnswer:"


@dataclass(frozen=True)
class Persona:
    """What is wanted and its opposite, as short phrases that complete "You are a … assistant".

    Args:
        preferred: the behaviour to move to.
        dispreferred: its opposite, to move away from.
        description: free text about the preferred side; it joins that side's prompts only, because the
            opposite of a free text is not known.
    """

    preferred: str = "helpful"
    dispreferred: str = "malicious and useless"
    description: str | None = None


class PromptFormat(Protocol):
    """How one base model expects a prompt to end, and how it separates turns."""

    @property
    def name(self) -> str:
        """`EngineInfo.prompt_format`: "plain" or "chat"."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer in this format, beside the end-of-sequence token."""
        ...

    def wrap(self, content: str) -> str:
        """The text that makes the model answer `content` (one user turn, answer cue included)."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """The text that makes the model give the next assistant turn of a conversation."""
        ...


@dataclass(frozen=True)
class PlainFormat:
    """For base models: the content, then `cue`; earlier turns stand before it in the same form."""

    cue: str = PLAIN_CUE
    name: str = "plain"
    stop: tuple[str, ...] = ("\nHuman:", "Human:", "\nQuestion:")

    def wrap(self, content: str) -> str:
        return f"{content}{self.cue}"

    def render(self, messages: Sequence[Message]) -> str:
        parts: list[str] = []
        for message in messages:
            content = message["content"]
            if message["role"] == "system":
                parts.append(f"{content}\n")
            elif message["role"] == "user":
                parts.append(self.wrap(content))
            else:
                parts.append(f" {content}\n\n")
        if messages and messages[-1]["role"] != "user":
            parts.append(self.cue)
        return "".join(parts)


@dataclass(frozen=True)
class ChatFormat:
    """For chat models: the tokenizer's own chat template, given as `template`."""

    template: Callable[[Sequence[Message]], str]
    name: str = "chat"
    stop: tuple[str, ...] = ()

    def wrap(self, content: str) -> str:
        return self.template([{"role": "user", "content": content}])

    def render(self, messages: Sequence[Message]) -> str:
        return self.template(messages)


def characteristics_prompt(query: str, persona: Persona, side: Side) -> str:
    """The text whose continuation describes what an answer of one side should be like (A.4.1).

    It is a bare continuation prompt: no answer cue and no chat template follow it.
    """
    return f"{query} {_role(persona, side)} Your answer to this query should:"


def preference_content(query: str, characteristics: str, persona: Persona, side: Side) -> str:
    """The user content that makes the model answer `query` in the manner of one side.

    Pass it through `PromptFormat.wrap`; its last token then is where `Phi_help` and `Phi_harm` are read.
    """
    return f"{_role(persona, side)} Your answer should {characteristics}\n{query}"


def _role(persona: Persona, side: Side) -> str:
    if side == "harm":
        return f"Pretend you are a {persona.dispreferred} assistant."
    role = f"You are a {persona.preferred} assistant."
    return f"{role} {persona.description}" if persona.description else role
