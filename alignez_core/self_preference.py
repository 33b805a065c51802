"""The model's own contrasting data: queries it invents, characteristics it names, answers of both sides.

Every row's seed derives from the fit's seed, the sample's index, the side and the kind. So the data do not depend on
how rows are batched, and a resumed fit continues exactly as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignez_core.engines.base import Completion, Engine, GenerationRequest
from alignez_core.fit_config import FitConfig, FitQuery, FitSpec
from alignez_core.prompts import Persona, Side, characteristics_prompt, preference_content

_EXAMPLES = 5
_QUERY_CHARS = (8, 300)
_QUERY_TOKENS = 40


@dataclass(frozen=True)
class Sample:
    """One fit sample: a query, the persona that applies to it and, for a given pair, both answers."""

    index: int
    query: str
    persona: Persona
    given: tuple[str, str] | None = None  #: (preferred, dispreferred) answers


@dataclass(frozen=True)
class TextPair:
    """One text per side, with the number of new tokens that it cost.

    Responses keep the white space that they begin with: it is part of the tokens that the model chose.
    """

    help: str
    harm: str
    tokens: int = 0


def make_samples(spec: FitSpec, own_queries: Sequence[str] = ()) -> list[Sample]:
    """All samples in their fixed order: queries, given pairs, the model's own queries."""
    texts = [(q.text, q.persona(spec.persona), None) for q in spec.queries]
    given = [(p.query, spec.persona, (p.preferred, p.dispreferred)) for p in spec.pairs]
    own = [(q, spec.persona, None) for q in own_queries]
    return [Sample(i, text, persona, answers) for i, (text, persona, answers) in enumerate([*texts, *given, *own])]


def invent_queries(engine: Engine, queries: Sequence[FitQuery], count: int, seed: int) -> tuple[list[str], int]:
    """Up to `count` new queries in the manner of the given ones, written by the model itself, and the tokens it made.

    Twice as many are drawn as asked for; malformed ones and repetitions are dropped, so fewer may come back.
    """
    known = {q.text.casefold() for q in queries}
    requests = []
    for attempt in range(2 * count):
        row_seed = _row_seed(seed, attempt, "none", "query")
        shown = random.Random(row_seed).sample([q.text for q in queries], min(_EXAMPLES, len(queries)))
        prompt = "Questions:\n" + "".join(f"- {text}\n" for text in shown) + "-"
        requests.append(
            GenerationRequest(prompt, max_tokens=_QUERY_TOKENS, temperature=0.9, seed=row_seed, stop=("\n",))
        )
    invented: list[str] = []
    completions = engine.generate(requests)
    for completion in completions:
        text = _one_line(completion.text)
        # A replacement character is half of one that the model did not finish.
        fits = _QUERY_CHARS[0] <= len(text) <= _QUERY_CHARS[1] and "\ufffd" not in text
        if fits and completion.finish_reason == "stop" and text.casefold() not in known:
            known.add(text.casefold())
            invented.append(text)
    return invented[:count], sum(len(completion.token_ids) for completion in completions)


def generate_characteristics(engine: Engine, samples: Sequence[Sample], config: FitConfig) -> list[TextPair]:
    """What an answer of either side should be like, in the model's words (A.4.1), one pair per sample."""
    return _generate_pairs(
        engine,
        samples,
        config,
        kind="characteristics",
        prompts=[
            (characteristics_prompt(s.query, s.persona, "help"), characteristics_prompt(s.query, s.persona, "harm"))
            for s in samples
        ],
        max_tokens=config.characteristics_tokens,
    )


def generate_responses(
    engine: Engine, samples: Sequence[Sample], characteristics: Mapping[int, TextPair], config: FitConfig
) -> list[TextPair]:
    """The answers of both sides, each conditioned on its own characteristics, one pair per sample."""
    prompts = [
        (preference_prompt(engine, s, characteristics[s.index], "help"),
         preference_prompt(engine, s, characteristics[s.index], "harm"))
        for s in samples
    ]  # fmt: skip
    budget = config.response_budget(engine.info.context_length)
    return _generate_pairs(engine, samples, config, kind="responses", prompts=prompts, max_tokens=budget)


def preference_prompt(engine: Engine, sample: Sample, characteristics: TextPair, side: Side) -> str:
    """The whole prompt of one side, ending where `Phi` is read when `representation="prompt"`."""
    text = characteristics.help if side == "help" else characteristics.harm
    return engine.prompt_format.wrap(preference_content(sample.query, text, sample.persona, side))


def given_characteristics(answers: tuple[str, str]) -> TextPair:
    """A ground-truth pair's stand-in for characteristics: the answers themselves, as examples.

    So that a given pair, too, has a prompt at whose end the model is about to answer in that manner. Ours; the paper
    reads given pairs as `query + response` (`representation="response_last"`), which needs no characteristics.
    """
    help_, harm = (f"read like this: {_one_line(answer)}" for answer in answers)
    return TextPair(help_, harm)


def given_responses(engine: Engine, answers: tuple[str, str]) -> TextPair:
    """A ground-truth pair's answers as the model would have written them: after a plain cue, with a space before."""
    gap = " " if engine.prompt_format.name == "plain" else ""
    return TextPair(gap + answers[0].strip(), gap + answers[1].strip())


def _generate_pairs(
    engine: Engine,
    samples: Sequence[Sample],
    config: FitConfig,
    *,
    kind: str,
    prompts: Sequence[tuple[str, str]],
    max_tokens: int,
) -> list[TextPair]:
    requests = [
        GenerationRequest(
            prompt,
            max_tokens=max_tokens,
            temperature=config.temperature,
            seed=_row_seed(config.seed, sample.index, side, kind),
            stop=engine.prompt_format.stop,
        )
        for sample, pair in zip(samples, prompts, strict=True)
        for side, prompt in zip(("help", "harm"), pair, strict=True)
    ]
    return list(_paired(engine.generate(requests), strip=kind == "characteristics"))


def _paired(completions: Sequence[Completion], *, strip: bool) -> Iterator[TextPair]:
    for help_, harm in zip(completions[::2], completions[1::2], strict=True):
        texts = [_clean(c.text.strip() if strip else c.text.rstrip()) for c in (help_, harm)]
        yield TextPair(texts[0], texts[1], len(help_.token_ids) + len(harm.token_ids))


def _row_seed(seed: int, index: int, side: str, kind: str) -> int:
    digest = hashlib.sha256(f"{seed}/{index}/{side}/{kind}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _clean(text: str) -> str:
    """Without NUL, which no text store keeps: a fit resumed from stored texts must go on with the very same ones."""
    return text.replace("\x00", "\ufffd")


def _one_line(text: str) -> str:
    return _clean(re.sub(r"\s+", " ", text).strip())
