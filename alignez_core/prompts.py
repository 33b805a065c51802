"""The prompts that let a model describe and show a behaviour, and the formats that end them.

A persona stands where a model reads it: in the system turn, before the caller's own system message. Without a system
turn (plain formats) it opens the text.

Source: AlignEZ (arXiv 2406.03642), appendix A.4.1, for the characteristics and the preference prompt. Deviations: the
two adjectives are parameters (`Persona.preferred`, `Persona.dispreferred`), a free-text description may join the
preferred side, chat models get both texts through their chat template, and the prompt's end (the *answer cue*) belongs
to the base model's `PromptFormat`, so that fit and inference read the same last token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from alignez_core.spec.persona import Persona

Side = Literal["help", "harm"]
SIDES: tuple[Side, ...] = ("help", "harm")
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}

PLAIN_CUE = "\nAnswer:"


@dataclass(frozen=True)
class Prefix:
    """Text that a version puts before a conversation, in place of an edit or beside one.

    Args:
        system: text that opens the system turn, before the caller's own.
        examples: (user, assistant) turns that follow it.
    """

    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the prefix merged in."""
        turns = list(messages)
        own = None
        if turns and turns[0]["role"] == "system":
            own = turns.pop(0)["content"]
        system = "\n\n".join(text for text in (self.system, own) if text)
        opening: list[Message] = [{"role": "system", "content": system}] if system else []
        for user, assistant in self.examples:
            opening += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*opening, *turns]


@dataclass(frozen=True)
class Situation:
    """Context of a query: alone, under a caller's own system message, or late in a conversation.

    Args:
        name: for reports.
        system: the caller's own system message.
        history: earlier (user, assistant) turns.
        max_tokens: length of the answer; None: the fit's.
    """

    name: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    max_tokens: int | None = None

    def messages(self, query: str) -> list[Message]:
        """The conversation that ends in the query."""
        turns: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for user, assistant in self.history:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*turns, {"role": "user", "content": query}]


#: A query alone: what most requests are, and where the edit is fitted.
ALONE = Situation("alone")


class Rendered(str):
    """A prompt's text as a `PromptFormat` makes it, with what its tokenizer must know; otherwise an ordinary string.

    Other operations than `+` give an ordinary string, which engines tokenise as raw text. Text that is added with `+`
    is an answer's: its special tokens are plain text too.

    Attributes:
        plain: (start, end) character spans, in which the text of a special token is ordinary text. So no message can
            end its own turn or open another.
        adds_special: False after a chat template, which writes its special tokens itself; else the tokenizer adds
            those that open a text (BOS).
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
    """Prompt format of one base model: how turns are separated and a prompt ends."""

    @property
    def name(self) -> str:
        """`EngineInfo.prompt_format`: "plain" or "chat"."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer in this format, beside the end-of-sequence token."""
        ...

    def wrap(self, content: str) -> Rendered:
        """The text that makes the model answer `content` (one user turn, answer cue included)."""
        ...

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The text that makes the model give the next assistant turn of a conversation."""
        ...


@dataclass(frozen=True)
class PlainFormat:
    """For base models: the content, then `cue`; earlier turns stand before it in the same form."""

    cue: str = PLAIN_CUE
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
    """For chat models: the tokenizer's own chat template, given as `template`.

    A template that returns `Rendered` says where messages hold the text of special tokens; one that returns an ordinary
    string holds none.
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
    """The persona as a system text: what `distill` makes an edit of, and what the method `prompt` serves."""
    phrase = persona.preferred if side == "help" else persona.dispreferred
    text = f"You are a {phrase} assistant. Always answer in a {phrase} manner."
    return f"{text} {persona.description}" if side == "help" and persona.description else text


def render(form: PromptFormat, query: str, situation: Situation = ALONE, prefix: Prefix | None = None) -> str:
    """The prompt of a query where it is asked, with a prefix before the caller's own system message."""
    messages = situation.messages(query)
    return form.render(messages if prefix is None else prefix.apply(messages))


def persona_prompt(form: PromptFormat, query: str, persona: Persona, side: Side, situation: Situation = ALONE) -> str:
    """The prompt of a query under the persona's system text; its answer shows the side's behaviour."""
    return render(form, query, situation, Prefix(persona_text(persona, side)))


def characteristics_prompt(form: PromptFormat, query: str, persona: Persona, side: Side) -> str:
    """The prompt whose answer describes what an answer of one side should be like (A.4.1).

    A bare continuation on plain formats, a user turn on chat formats: asked as a bare continuation, an instruction
    model answers with noise.
    """
    content = f"{query} {_role(persona, side)} Your answer to this query should:"
    return form.wrap(content) if form.name == "chat" else content


def preference_prompt(form: PromptFormat, query: str, characteristics: str, persona: Persona, side: Side) -> str:
    """The prompt that makes the model answer `query` in the manner of one side; `Phi` is read at its last token.

    Source: AlignEZ (arXiv 2406.03642), appendix A.4.1. Deviation: on chat formats the text before the query is the
    system turn.
    """
    return render(form, query, prefix=Prefix(f"{_role(persona, side)} Your answer should {characteristics}"))


def _role(persona: Persona, side: Side) -> str:
    if side == "harm":
        return f"Pretend you are a {persona.dispreferred} assistant."
    role = f"You are a {persona.preferred} assistant."
    return f"{role} {persona.description}" if persona.description else role
