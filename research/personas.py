"""The personas of experiments, each with a measure of style that no language model judges, and the loop over them."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from alignez_core.models import persona_nano
from alignez_core.models.persona_nano.style import style_of
from alignez_core.proof.measures import mean
from alignez_core.spec.persona import Persona
from research.lab import Lab, ModelSource, engine_of
from research.runner import Results, Row, settings_of

PERSONAS = Path(__file__).parents[1] / "tests" / "personas" / "personas.json"


@dataclass(frozen=True)
class Styled:
    """A persona with its measure of style.

    Args:
        style: score of one answer; higher is better.
    """

    name: str
    persona: Persona
    style: Callable[[str], float]

    def mean_style(self, answers: Sequence[str]) -> float:
        """The mean score of answers; 0 without any."""
        return sum(map(self.style, answers)) / max(len(answers), 1)


def described() -> list[dict[str, Any]]:
    """The personas of tests/personas with their measures, as their file has them."""
    found: list[dict[str, Any]] = json.loads(PERSONAS.read_text(encoding="utf-8"))
    return found


def styled_personas(model: str, names: Sequence[str] = ()) -> list[Styled]:
    """The personas for a model: persona-nano's own with its exact scorer, else those of tests/personas.

    Raises: SystemExit: an unknown name.
    """
    if ModelSource.of(model).directory == persona_nano.MODEL_DIR:
        found = [
            Styled(p.name, Persona(p.preferred, p.dispreferred), partial(_is_style, p.preferred_style))
            for p in persona_nano.PERSONAS
        ]
    else:
        found = [
            Styled(p["name"], Persona(p["preferred"], p["dispreferred"]), partial(style_score, p)) for p in described()
        ]
    unknown = sorted(set(names) - {each.name for each in found})
    if unknown:
        raise SystemExit(f"no persona {unknown[0]!r}; there are {', '.join(each.name for each in found)}")
    return [each for each in found if not names or each.name in names]


def each_persona(args: argparse.Namespace, experiment: str, make_row: Callable[[Lab, Styled], Row]) -> list[Row]:
    """One row per persona and seed, `{"persona", "seed", …}`, of `args.personas` or of all personas."""
    where = ModelSource.of(args.model)
    personas = styled_personas(args.model, args.personas)
    settings = {name: value for name, value in settings_of(args).items() if name != "personas"}
    results = Results(args.out / f"{experiment}-{where.key}.json", settings, args.seeds * len(personas))
    cells = [(styled, seed) for seed in range(args.seeds) for styled in personas]
    if not all(results.find({"persona": styled.name, "seed": seed}) for styled, seed in cells):
        with engine_of(args.model, args) as engine:
            for styled, seed in cells:

                def make(styled: Styled = styled, seed: int = seed) -> Row:
                    lab = Lab.of(engine, args, f"{experiment}-{styled.name}", seed, styled.persona)
                    row = make_row(lab, styled)
                    lab.close()
                    return row

                results.row({"persona": styled.name, "seed": seed}, make)
    names = {styled.name for styled in personas}
    return [row for row in results.rows if row["persona"] in names and row["seed"] < args.seeds]


def by_query(rows: Sequence[Row], values: Callable[[Row], Sequence[float]]) -> list[float]:
    """One value per query of each persona: the mean over seeds of the row's `values`."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        for i, value in enumerate(values(row)):
            found.setdefault((row["persona"], i), []).append(value)
    return [mean(each) for each in found.values()]


def add_personas(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the option that names personas."""
    parser.add_argument("--personas", nargs="+", default=[], metavar="NAME", help="default: all that the model has")
    return parser


def style_score(persona: dict[str, Any], answer: str) -> float:
    """Score of one answer by the measure of a persona of `tests/personas`; higher is better.

    "words": 1 if any listed word occurs, else 0. "sentiment": VADER's compound, −1 to 1. "brevity": −words ÷ 50.
    """
    measure = persona["measure"]
    if measure == "words":
        return float(bool(_pattern(tuple(persona["words"])).search(answer)))
    if measure == "sentiment":
        return float(_vader().polarity_scores(answer)["compound"])
    if measure == "brevity":
        return -len(answer.split()) / 50
    raise ValueError(f"persona {persona['name']}: unknown measure {measure!r}")


def _is_style(style: str, answer: str) -> float:
    return float(style_of(answer) == style)


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(re.escape(word) for word in words) + r")\b", re.IGNORECASE)


@lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
