"""Prompts that make a model describe or show a behaviour, and the prompt formats of base models.

The persona opens the system turn, before the caller's own system message. Formats without a system turn (plain ones)
put it at the start of the text.

Source: AlignEZ (arXiv 2406.03642), appendix A.4.1, for the characteristics prompt and the preference prompt.
Deviations: the two adjectives are parameters (`Persona.preferred`, `Persona.dispreferred`); the preferred side may have
a free-text description; chat models get both texts through their chat template; the end of the prompt (the *answer
cue*) belongs to the model's `PromptFormat`, so that fit and inference read the same last token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from alignez_core.spec.persona import Persona

Side = Literal["help", "harm"]
SIDES: tuple[Side, ...] = ("help", "harm")
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


def _turns(exchanges: Sequence[tuple[str, str]]) -> list[Message]:
    return [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]


@dataclass(frozen=True)
class Prefix:
    """Text that a version puts before a conversation, with or without an edit.

    Args:
        system: start of the system turn, before the caller's own system message.
        examples: (user, assistant) turns after the system turn.
    """

    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the prefix merged into it."""
        turns = list(messages)
        own = None
        if turns and turns[0]["role"] == "system":
            own = turns.pop(0)["content"]
        system = "\n\n".join(text for text in (self.system, own) if text)
        opening: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*opening, *_turns(self.examples), *turns]

    def to_dict(self) -> dict[str, Any]:
        """The prefix as JSON values; the inverse of `from_dict`."""
        return {"system": self.system, "examples": [list(example) for example in self.examples]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Prefix:
        """The prefix of a `to_dict`."""
        return cls(stored["system"], tuple((user, assistant) for user, assistant in stored["examples"]))


@dataclass(frozen=True)
class Situation:
    """Context of a query: alone, under a caller's own system message, or late in a conversation.

    Args:
        name: shown in reports.
        system: the caller's own system message.
        history: earlier (user, assistant) turns.
        max_tokens: maximum new tokens of the answer; None: the fit's `answer_tokens`.
    """

    name: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    max_tokens: int | None = None

    def messages(self, query: str) -> list[Message]:
        """The conversation that ends in the query."""
        opening: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *_turns(self.history), {"role": "user", "content": query}]


#: A query without context: the situation in which edits are fitted.
ALONE = Situation("alone")


class Rendered(str):
    """Text of a prompt made by a `PromptFormat`, with instructions for the tokenizer.

    `+` appends an answer, in which special tokens are ordinary text. All other operations return an ordinary string,
    which engines tokenise as raw text.

    Attributes:
        plain: (start, end) character spans in which special tokens are ordinary text, so that no message can end its
            turn or open another one.
        adds_special: True if the tokenizer must add the special tokens that open a text (BOS); False after a chat
            template, which writes them itself.
    """

    plain: tuple[tuple[int, int], ...]
    adds_special: bool

    def __new__(cls, text: str, plain: Sequence[tuple[int, int]] = (), *, adds_special: bool = False) -> Rendered:
        self = super().__new__(cls, text)
        self.plain, self.adds_special = tuple(plain), adds_special
        return self

    def __add__(self, other: str) -> Rendered:
        start = len(self)
        spans = other.plain if isinstance(other, Rendered) else ((0, len(other)),)
        moved = [(start + first, start + last) for first, last in spans]
        return Rendered(str(self) + str(other), (*self.plain, *moved), adds_special=self.adds_special)

    def __getnewargs_ex__(self) -> tuple[tuple[str, tuple[tuple[int, int], ...]], dict[str, bool]]:
        return (str(self), self.plain), {"adds_special": self.adds_special}


class PromptFormat(Protocol):
    """Prompt format of a base model: separators between turns and the end of a prompt."""

    @property
    def name(self) -> str:
        """`EngineInfo.prompt_format`: "plain" or "chat"."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer, in addition to the end-of-sequence token."""
        ...

    def wrap(self, content: str) -> Rendered:
        """Prompt of one user turn, including the answer cue."""
        ...

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Prompt that asks for the next assistant turn of a conversation."""
        ...


@dataclass(frozen=True)
class PlainFormat:
    """Format of base models: each user turn is its content followed by `cue`."""

    cue: str = "\nAnswer:"
    name: str = "plain"
    stop: tuple[str, ...] = ("\nHuman:", "Human:", "\nQuestion:")

    def wrap(self, content: str) -> Rendered:
        return self.render([{"role": "user", "content": content}])

    def render(self, messages: Sequence[Message]) -> Rendered:
        text, plain = "", []
        for message in messages:
            before, after = self._around(message["role"])
            text += before
            plain.append((len(text), len(text) + len(message["content"])))
            text += message["content"] + after
        if messages and messages[-1]["role"] != "user":
            text += self.cue
        return Rendered(text, plain, adds_special=True)

    def _around(self, role: str) -> tuple[str, str]:
        """Texts before and after the content of one turn."""
        if role == "system":
            return "", "\n"
        return ("", self.cue) if role == "user" else (" ", "\n\n")


@dataclass(frozen=True)
class ChatFormat:
    """Format of chat models: the tokenizer's chat template, given as `template`.

    A template returns `Rendered` if messages may contain the text of special tokens, else an ordinary string.
    """

    template: Callable[[Sequence[Message]], str]
    name: str = "chat"
    stop: tuple[str, ...] = ()

    def wrap(self, content: str) -> Rendered:
        return self.render([{"role": "user", "content": content}])

    def render(self, messages: Sequence[Message]) -> Rendered:
        text = self.template(messages)
        return text if isinstance(text, Rendered) else Rendered(text)


def persona_text(persona: Persona, side: Side) -> str:
    """The persona as a system message. `distill` fits an edit to its effect; the method `prompt` serves it."""
    phrase = persona.preferred if side == "help" else persona.dispreferred
    text = f"You are a {phrase} assistant. Always answer in a {phrase} manner."
    return f"{text} {persona.description}" if side == "help" and persona.description else text


def render(form: PromptFormat, query: str, situation: Situation = ALONE, prefix: Prefix | None = None) -> str:
    """The prompt of a query in a situation, opened by the prefix."""
    messages = situation.messages(query)
    return form.render(messages if prefix is None else prefix.apply(messages))


def persona_prompt(form: PromptFormat, query: str, persona: Persona, side: Side, situation: Situation = ALONE) -> str:
    """The prompt of a query with the persona's system message; the answer shows the side's behaviour."""
    return render(form, query, situation, Prefix(persona_text(persona, side)))


def characteristics_prompt(form: PromptFormat, query: str, persona: Persona, side: Side) -> str:
    """The prompt that asks for a description of one side's answers (A.4.1).

    Plain formats get a text to continue, chat formats a user turn: instruction models continue a text with noise.
    """
    content = f"{query} {_role(persona, side)} Your answer to this query should:"
    return form.wrap(content) if form.name == "chat" else content


def preference_prompt(form: PromptFormat, query: str, characteristics: str, persona: Persona, side: Side) -> str:
    """The prompt that makes the model answer `query` in the manner of one side; its last token is read as `Phi`.

    Source: AlignEZ (arXiv 2406.03642), appendix A.4.1. Deviation: chat formats put the text before the query into the
    system turn.
    """
    return render(form, query, prefix=Prefix(f"{_role(persona, side)} Your answer should {characteristics}"))


def _role(persona: Persona, side: Side) -> str:
    if side == "harm":
        return f"Pretend you are a {persona.dispreferred} assistant."
    role = f"You are a {persona.preferred} assistant."
    return f"{role} {persona.description}" if persona.description else role
