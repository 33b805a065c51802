"""Query sets and preference pairs of the paper's experiments, read from a folder that the user names.

docs/research.md lists the files with their sources. Without a folder the queries are those of the model's bank, as one
slice, and there are ground-truth pairs only for persona-nano, whose corpus makes them.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from alignez_core.models import persona_nano
from alignez_core.models.persona_nano.styles import STYLES, style_named
from alignez_core.models.persona_nano.topics import TOPICS
from alignez_core.prompts import Prefix
from alignez_core.query_bank import queries_for
from alignez_core.spec.persona import GivenPair, Persona

#: Helpfulness slices of just-eval-instruct in the paper's order (Table 1).
SLICES = ("oasst", "mt", "helpful_base", "selfinstruct", "koala")
#: Slice on which the paper chooses layers and multipliers of the baselines; slice of the queries to fit on.
TUNE_SLICE, FIT_SLICE = "vicuna", "lima"
_JUST_EVAL = "just_eval/just_eval_instruct.jsonl"
_PAIRS = "preferences/hh_helpful_test.json"
_URIAL = "urial/inst_1k_v4.help.txt"


@dataclass(frozen=True)
class QuerySets:
    """Queries to fit on, to choose on, and to evaluate on, by slice; no text is in two of them."""

    fit: tuple[str, ...]
    tune: tuple[str, ...]
    slices: dict[str, tuple[str, ...]]


def query_sets(data: Path | None, model: Path, fit: int, tune: int, each: int) -> QuerySets:
    """At most `fit` and `tune` queries, and `each` of a slice.

    Args:
        model: directory of the model, which may bring its own bank.
    Raises: SystemExit: the folder lacks the file, or the bank has too few queries.
    """
    if data is None:
        bank = list(dict.fromkeys(queries_for(model)))
        if len(bank) < fit + tune + 1:
            raise SystemExit(f"the bank has {len(bank)} queries, too few for {fit} to fit and {tune} to choose on")
        return QuerySets(tuple(bank[:fit]), tuple(bank[fit : fit + tune]), {"bank": tuple(bank[fit + tune :][:each])})
    by_slice: dict[str, list[str]] = {}
    for line in _text(data / _JUST_EVAL).splitlines():
        row = json.loads(line)
        by_slice.setdefault(row["dataset"], []).append(row["instruction"])
    slices = {name: tuple(by_slice[name][:each]) for name in SLICES}
    used = {query for queries in slices.values() for query in queries}
    chosen = [
        tuple(query for query in by_slice[name] if query not in used)[:count]
        for name, count in ((FIT_SLICE, fit), (TUNE_SLICE, tune))
    ]
    return QuerySets(chosen[0], chosen[1], slices)


def preference_pairs(data: Path | None, model: Path, persona: Persona, count: int, seed: int) -> list[GivenPair]:
    """`count` random ground-truth pairs: dialogues of one turn of hh-rlhf (helpful), or persona-nano's corpus.

    Fewer where the set has fewer; none without a folder for any other model.
    """
    rng = random.Random(seed)
    if data is None:
        return _nano_pairs(rng, persona, count) if model == persona_nano.MODEL_DIR else []
    pairs = []
    for row in json.loads(_text(data / _PAIRS)):
        texts = [text for _, text in sorted(zip(row["score"], row["text"], strict=True), reverse=True)]
        turns = [text.split("\n\nAssistant:") for text in texts]
        query = turns[0][0].removeprefix("\n\nHuman:").strip()
        if all(len(parts) == 2 for parts in turns) and query and all(parts[1].strip() for parts in turns):
            pairs.append(GivenPair(query, turns[0][1].strip(), turns[1][1].strip()))
    return rng.sample(pairs, min(count, len(pairs)))


def urial_prefix(data: Path | None) -> Prefix | None:
    """URIAL's instruction and examples (Lin et al., arXiv 2312.01552) as a prefix; None without a folder.

    Deviation: the examples are turns of the model's own prompt format, in place of headings in one text.
    """
    if data is None:
        return None
    head, *parts = _text(data / _URIAL).split("# Query:")
    examples = []
    for part in parts:
        query, _, answer = part.partition("# Answer:")
        examples.append((_unfenced(query), _unfenced(answer)))
    return Prefix(head.removeprefix("# Instruction").strip(), tuple(e for e in examples if all(e)))


def _unfenced(text: str) -> str:
    return text.strip().strip("`").strip()


def _nano_pairs(rng: random.Random, persona: Persona, count: int) -> list[GivenPair]:
    from research.persona_nano.corpus import make_answer

    wanted, unwanted = style_named(persona.preferred), style_named(persona.dispreferred)
    if wanted is None or unwanted is None:
        return []
    pairs = []
    for query in rng.choices(persona_nano.query_bank(), k=count):
        topic = next((topic for topic in TOPICS if topic in query), None)
        if topic is not None:
            pairs.append(GivenPair(query, *(make_answer(rng, STYLES[name], topic) for name in (wanted, unwanted))))
    return pairs


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SystemExit(
            f"{path} cannot be read; --data names the folder of the sets (docs/research.md): {error}"
        ) from error
