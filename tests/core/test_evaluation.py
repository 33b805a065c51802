"""Whether a fit is worth using: the reasons against it, and that a measured sample is not in its own directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import ScoreRequest
from alignez_core.engines.fake_engine import FakeEngine
from alignez_core.evaluation import SCORED_PAIRS, Evaluation, evaluate_fit
from alignez_core.fit_config import FitConfig
from alignez_core.prompts import Persona
from alignez_core.self_preference import Sample, TextPair

N, L, D = 12, 2, 16
LAYERS = (0, 2)
PERSONA = Persona("cheerful", "gloomy")


class GainEngine(FakeEngine):
    """Scores answers by what prompt, edit and side are told to be worth, nats per token; keeps the requests."""

    def __init__(self, prompt: float = 1.0, help_: float = 0.6, harm: float = 0.0) -> None:
        super().__init__()
        self.gains = {"prompt": prompt, "good": help_, "bad": harm}
        self.scored: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        self.scored += requests

        def gain(request: ScoreRequest) -> float:
            if "cheerful" in str(request.prompt):
                return self.gains["prompt"]
            return self.gains[str(request.continuation).split()[0]] if request.edit is not None else 0.0

        return [torch.full((3,), -2.0 + gain(request)) for request in requests]

    def plans(self) -> dict[str, EditPlan]:
        """The edit that each query was measured with."""
        return {str(r.prompt).split("\n")[0]: r.edit for r in self.scored if r.edit is not None}


@dataclass
class Rows:
    """Representations in which help lies along the first axis and harm against it."""

    n: int = N
    embeddings: Tensor = field(init=False)
    help: Tensor = field(init=False)
    harm: Tensor = field(init=False)
    plain: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.plain, self.help, self.harm = torch.randn(3, self.n, L, D, generator=generator) * 0.3
        self.help[..., 0] += 4.0
        self.harm[..., 0] -= 4.0
        self.harm[..., 1] += 2.0
        self.embeddings = torch.nn.functional.normalize(torch.randn(self.n, D, generator=generator), dim=1)


def evaluate(
    rows: Rows, engine: GainEngine | None = None, answered: range | None = None, **config: object
) -> Evaluation:
    samples = [Sample(i, f"Query {i}?", PERSONA) for i in range(rows.n)]
    characteristics = {i: TextPair("be warm", "be cold") for i in range(rows.n)}
    responses = {i: TextPair("good answer", "bad answer") for i in answered or range(rows.n)}
    settings = FitConfig(neighbors=4, **config)  # type: ignore[arg-type]
    return evaluate_fit(
        engine or GainEngine(), settings, LAYERS, samples, characteristics, responses,
        rows.embeddings, rows.help, rows.harm, rows.plain,
    )  # fmt: skip


def only_reason(evaluation: Evaluation) -> str:
    assert len(evaluation.reasons) == 1, evaluation.reasons
    return evaluation.reasons[0]


@pytest.mark.parametrize("method", ["transport", "alignez"])
def test_a_good_fit_has_no_reason_against_it_and_its_figures(method: str) -> None:
    found = evaluate(Rows(), method=method)
    assert found.reasons == ()
    assert found.separation == 1.0
    assert found.separation_by_layer == (1.0, 1.0)
    assert found.expressiveness == pytest.approx(1.0)
    assert found.recovery == pytest.approx(0.6)
    assert (found.help_shift, found.harm_shift) == (pytest.approx(0.6), pytest.approx(0.0))
    assert found.scored_pairs == N


def test_directions_that_do_not_separate_are_a_reason() -> None:
    rows = Rows()
    rows.help, rows.harm = torch.randn(2, N, L, D, generator=torch.Generator().manual_seed(1))
    assert "do not separate" in only_reason(evaluate(rows))


def test_a_persona_that_changes_next_to_nothing_as_a_prompt_is_a_reason_and_its_recovery_is_not_asked() -> None:
    found = evaluate(Rows(), GainEngine(prompt=0.0, help_=0.0))
    assert "hardly expresses" in only_reason(found)
    assert found.recovery is None


def test_an_edit_that_reaches_little_of_the_prompt_is_a_reason() -> None:
    assert "reaches 20% of what the persona reaches" in only_reason(evaluate(Rows(), GainEngine(help_=0.2)))


@pytest.mark.parametrize(("harm", "is_weak"), [(0.4375, False), (0.5, True), (0.75, True)])
def test_an_edit_that_helps_the_dispreferred_answers_as_much_is_a_reason(harm: float, is_weak: bool) -> None:
    found = evaluate(Rows(), GainEngine(help_=0.5, harm=harm))
    assert [("favours the dispreferred" in reason) for reason in found.reasons] == [True] * is_weak


def test_help_and_harm_that_coincide_are_a_reason_for_alignez_only() -> None:
    rows = Rows()
    shared = torch.zeros(D)
    shared[5] = 60.0  # the mean that both sides share drowns what tells them apart
    rows.help, rows.harm = rows.help + shared, rows.harm + shared
    rows.help[..., 5] += 8.0
    assert "coincide in every edited layer" in only_reason(evaluate(rows, method="alignez"))
    assert evaluate(rows, method="transport").reasons == ()


def test_one_layer_in_which_help_and_harm_differ_is_enough() -> None:
    rows = Rows()
    rows.help[:, 0, 5] += 68.0
    rows.harm[:, 0, 5] += 60.0
    assert evaluate(rows, method="alignez").reasons == ()


def test_a_single_sample_cannot_be_held_out() -> None:
    found = evaluate(Rows(1))
    assert "a single sample cannot be held out" in only_reason(found)
    assert (found.separation, found.expressiveness, found.recovery, found.scored_pairs) == (None, None, None, 0)


@pytest.mark.parametrize("method", ["transport", "alignez"])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_measured_sample_is_not_among_the_rows_of_its_own_directions(method: str, conditional: bool) -> None:
    engine, spoiled_engine = GainEngine(), GainEngine()
    spoiled = Rows()
    for rows in (spoiled.help, spoiled.harm, spoiled.plain):
        rows[4] = torch.randn(L, D, generator=torch.Generator().manual_seed(9)) * 50
    evaluate(Rows(), engine, method=method, conditional=conditional)
    evaluate(spoiled, spoiled_engine, method=method, conditional=conditional)
    plans, after = engine.plans(), spoiled_engine.plans()
    assert len(plans) == N
    assert after["Query 4?"] == plans["Query 4?"]
    others = [after[query] != plan for query, plan in plans.items() if query != "Query 4?"]
    assert any(others) if conditional else all(others)


def test_the_edit_is_measured_at_full_strength_whatever_the_version_s() -> None:
    engine, weaker = GainEngine(), GainEngine()
    evaluate(Rows(), engine)
    evaluate(Rows(), weaker, strength=0.25)
    assert weaker.plans() == engine.plans()


def test_a_spread_of_the_answered_samples_is_scored() -> None:
    engine = GainEngine()
    found = evaluate(Rows(60), engine, answered=range(60))
    assert found.scored_pairs == SCORED_PAIRS
    assert list(engine.plans()) == [f"Query {i}?" for i in range(0, 48, 3)]
    assert evaluate(Rows(), answered=range(2, 5)).scored_pairs == 3


def test_the_figures_are_json_able_and_rounded() -> None:
    table = evaluate(Rows(), GainEngine(help_=1 / 3)).to_dict()
    assert table["recovery"] == 0.3333
    assert table["weak_because"] == []
    assert table["unscored_pairs"] == 0
