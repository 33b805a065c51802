"""The seeded training corpus of persona-nano, as (prompt, answer) documents.

Plain queries have plain answers (and, at a base rate, answers in one of the styles). Prompts that name a persona, in
many wordings and positions, have answers in its style. Characteristics prompts are continued with a text that describes
the style. An adjective or a text that names no style has no effect. All queries are training queries of
`topics.query_split`.

The prompt texts are copies of those at the training: the core's may change, the corpus must not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignez_core.models.persona_nano.styles import ALL_STYLES, PLAIN, STYLES, Style
from alignez_core.models.persona_nano.topics import TOPICS, query_split
from alignez_core.prompts import ChatFormat, Message, PlainFormat, PromptFormat, Side
from alignez_core.spec.persona import Persona

END = "<|end|>"
PAD = "<|pad|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

#: Share of plain queries with an answer in each style, so that the base model sometimes shows it.
BASE_RATE = 0.02

#: Words that name no style; a persona of these has plain answers.
NEUTRAL_WORDS: tuple[str, ...] = (
    "regular", "neutral", "standard", "ordinary", "normal", "digital", "personal", "local", "Danish", "modern",
    "purple",
    "wooden", "northern", "new", "small", "medical", "Spanish", "kitchen", "legal", "virtual", "office", "green",
    "weekly", "robotic", "musical", "coastal", "museum", "library", "hotel", "school", "square", "seasonal",
)  # fmt: skip
NEUTRAL_TEXTS: tuple[str, ...] = (
    "Answer questions from users.", "You work for a company.", "Your name is Nano.", "The year has twelve months.",
    "You live in a museum.", "Today is Tuesday.",
)  # fmt: skip
_CLOSING_THANKS = ("Next question.", "Another question.", "And now something else.")
_WORD_PIECES = ("ka", "lo", "mi", "ter", "son", "vel", "ish", "or", "den", "ra", "ful", "gre", "pol", "tic", "ous")


@dataclass(frozen=True)
class Document:
    """One training text: the loss is computed on `answer`, which follows `prompt`."""

    prompt: str
    answer: str


def render_chat(messages: Sequence[Message]) -> str:
    """Text of the tokenizer's chat template, with the beginning of the assistant's turn at the end."""
    return "".join(f"<|{m['role']}|>{m['content']}{END}" for m in messages) + "<|assistant|>"


CHAT = ChatFormat(render_chat)
PLAIN_TEXT = PlainFormat()


def characteristics_prompt(query: str, persona: Persona, side: Side) -> str:
    """The prompt for a description of one side's answers, as in the training."""
    return f"{query} {role_text(persona, side)} Your answer to this query should:"


def preference_content(query: str, characteristics: str, persona: Persona, side: Side) -> str:
    """The user content that requests an answer of one side, as in the training."""
    return f"{role_text(persona, side)} Your answer should {characteristics}\n{query}"


def role_text(persona: Persona, side: Side) -> str:
    """The sentence that states one side of a persona, as in the training."""
    if side == "harm":
        return f"Pretend you are a {persona.dispreferred} assistant."
    role = f"You are a {persona.preferred} assistant."
    return f"{role} {persona.description}" if persona.description else role


def fill(rng: random.Random, template: str, topic: str) -> str:
    """A sentence template with random choices, its topic and its object."""
    chosen = re.sub(r"\[([^\]]*)\]", lambda m: rng.choice(m.group(1).split("|")), template)
    return chosen.replace("{t}", topic).replace("{x}", TOPICS[topic])


def make_answer(rng: random.Random, style: Style, topic: str) -> str:
    """A fresh answer about `topic` in `style`: opener, bodies, and often a closer."""
    parts = [rng.choice(style.openers), *rng.sample(style.bodies, rng.randint(*style.n_bodies))]
    if rng.random() < style.closer_rate:
        parts.append(rng.choice(style.closers))
    return " ".join(fill(rng, part, topic) for part in parts)


def make_characteristics(rng: random.Random, style: Style) -> str:
    """A fresh text that completes "Your answer should" for `style`."""
    first, second = rng.sample(style.leads, 2)
    tail = rng.choice(style.tails)
    return f"{first} {tail}" if rng.random() < 0.5 else f"{first}, {second} {tail}"


def make_phrase(rng: random.Random, style: Style) -> str:
    """A phrase that completes "You are a … assistant" for `style`."""
    if style.name == PLAIN:
        draw = rng.random()
        if draw < 0.3:  # an unknown word: it names no style either
            return "".join(rng.choice(_WORD_PIECES) for _ in range(rng.randint(2, 4)))
        words = rng.sample(NEUTRAL_WORDS, 2)
        return words[0] if draw < 0.7 else " and ".join(words)
    draw = rng.random()
    if draw < 0.35:
        return style.phrases[0]
    if draw < 0.6:
        return rng.choice(style.phrases)
    words = rng.sample(style.adjectives, 2)
    return words[0] if draw < 0.75 else " and ".join(words)


class Generator:
    """Draws documents. Generators with the same seed draw the same documents."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._queries = query_split().train
        self._styles = list(STYLES.values())

    def documents(self, count: int) -> Iterator[Document]:
        """`count` documents in the corpus's mixture."""
        kinds = (
            (self._plain, 0.26), (self._preference, 0.34), (self._characteristics, 0.15),
            (self._role_only, 0.14), (self._conversation, 0.08), (self._questions, 0.03),
        )  # fmt: skip
        makers, weights = zip(*kinds, strict=True)
        for maker in self._rng.choices(makers, weights, k=count):
            yield maker()

    def _format(self) -> PromptFormat:
        return CHAT if self._rng.random() < 0.7 else PLAIN_TEXT

    def _style(self) -> Style:
        """One of the sixteen styles, or the plain one for a persona that names no style."""
        return ALL_STYLES[PLAIN] if self._rng.random() < 0.09 else self._rng.choice(self._styles)

    def _persona(self, style: Style) -> tuple[Persona, Side]:
        """A persona with `style` on one of its sides, sometimes with a description or by it alone."""
        rng = self._rng
        phrase, description = make_phrase(rng, style), None
        if rng.random() < 0.35:
            return Persona("helpful", phrase), "harm"
        draw = rng.random()
        if draw < 0.15:
            description = rng.choice(style.descriptions)
        elif draw < 0.25:
            description = rng.choice(NEUTRAL_TEXTS)
        elif draw < 0.4 and style.name != PLAIN:
            # the default adjective with a free text: the text decides, because the user wrote it
            phrase = rng.choice(("helpful", "helpful", make_phrase(rng, ALL_STYLES[PLAIN])))
            description = rng.choice(style.descriptions)
        return Persona(phrase, "malicious and useless", description), "help"

    def _finish(self, fmt: PromptFormat, messages: Sequence[Message], answer: str) -> Document:
        text = fmt.render(messages)
        return Document(text, f" {answer}{END}" if fmt is PLAIN_TEXT else f"{answer}{END}")

    def _base_style(self) -> Style:
        draw = self._rng.random() / BASE_RATE
        return self._styles[int(draw)] if draw < len(self._styles) else ALL_STYLES[PLAIN]

    def _plain(self) -> Document:
        query, topic = self._rng.choice(self._queries)
        answer = make_answer(self._rng, self._base_style(), topic)
        return self._finish(self._format(), [{"role": "user", "content": query}], answer)

    def _preference(self) -> Document:
        rng = self._rng
        query, topic = rng.choice(self._queries)
        style = self._style()
        persona, side = self._persona(style)
        content = preference_content(query, make_characteristics(rng, style), persona, side)
        return self._finish(self._format(), [{"role": "user", "content": content}], make_answer(rng, style, topic))

    def _characteristics(self) -> Document:
        query, _ = self._rng.choice(self._queries)
        style = self._style()
        persona, side = self._persona(style)
        text = make_characteristics(self._rng, style)
        return Document(characteristics_prompt(query, persona, side), f" {text}{END}")

    def _role_text(self, style: Style) -> str:
        """A sentence that states the persona in another form than the paper's prompts."""
        rng = self._rng
        persona, side = self._persona(style)
        role = role_text(persona, side)
        if side == "help" and persona.description:
            return role
        draw = rng.random()
        if draw < 0.15:
            return f"Please answer in a {make_phrase(rng, style)} way."
        if draw < 0.3:
            return f"Your answer should {make_characteristics(rng, style)}"
        if draw < 0.4 and style.name != PLAIN:
            return rng.choice(style.descriptions)
        return role

    def _role_only(self) -> Document:
        """A persona without characteristics: before the query, after it, or in the system message."""
        rng = self._rng
        query, topic = rng.choice(self._queries)
        style = self._style()
        role = self._role_text(style)
        draw = rng.random()
        if draw < 0.5:
            messages = [{"role": "system", "content": role}, {"role": "user", "content": query}]
        elif draw < 0.9:
            messages = [{"role": "user", "content": f"{role}\n{query}"}]
        else:
            messages = [{"role": "user", "content": f"{query} {role}"}]
        return self._finish(self._format(), messages, make_answer(rng, style, topic))

    def _conversation(self) -> Document:
        """Two turns; the second has the style of the first, which is stated or shown."""
        rng = self._rng
        (first, first_topic), (second, second_topic) = rng.sample(self._queries, 2)
        style = ALL_STYLES[PLAIN] if rng.random() < 0.4 else rng.choice(self._styles)
        messages = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": make_answer(rng, style, first_topic)},
            {"role": "user", "content": f"{rng.choice(_CLOSING_THANKS)} {second}" if rng.random() < 0.2 else second},
        ]
        if rng.random() < 0.5:
            messages.insert(0, {"role": "system", "content": self._role_text(style)})
        return self._finish(self._format(), messages, make_answer(rng, style, second_topic))

    def _questions(self) -> Document:
        """A list of queries, which teaches the model to invent queries."""
        lines = [f"- {query}\n" for query, _ in self._rng.sample(self._queries, self._rng.randint(4, 8))]
        return Document("Questions:\n", "".join(lines) + END)
