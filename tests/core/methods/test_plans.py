"""`alignez`, `caa` and `transport` end to end against independent Hugging Face hooks: readings, fit, edited logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import ScoreRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.alignez import AlignEZ, neighbor_plan
from alignez_core.methods.base import Candidate, Material, plan_at, vote
from alignez_core.methods.caa import CAA
from alignez_core.methods.prompt import PromptMethod, Urial
from alignez_core.methods.transport import TransportMethod
from alignez_core.readings import Readings, read_sides
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample
from tests.core.methods.plain_model import PlainModel

PERSONA = Persona("cheerful", "gloomy")
SAMPLES = [Sample(i, f"Why is {word} so?", PERSONA) for i, word in enumerate(["rain", "the sea", "bread", "x", "moss"])]
CHARACTERISTICS = {
    "help": {s.index: f"be bright {s.index}" for s in SAMPLES},
    "harm": {s.index: "be dull, slow and grey" for s in SAMPLES},
}
HELP = {s.index: f" Oh, lovely {s.query[7:]}" for s in SAMPLES}
HARM = {s.index: " Go away." for s in SAMPLES}
ASKED, ANSWER = "Who are you?\nAnswer:", " A friend of the sea."
Change = Callable[[Tensor], Tensor]


def top(rows: Tensor) -> Tensor:
    """First right singular vector, turned to agree with the mean row."""
    v = torch.linalg.svd(rows.double(), full_matrices=False)[2][0]
    return (v * torch.sign(v @ rows.double().mean(0))).float()


def same_logits(engine: TransformersEngine, plain: PlainModel, plan: EditPlan, edits: dict[int, Change]) -> None:
    got = engine.walk([ScoreRequest(ASKED, ANSWER, plan)]).logits()
    expected = plain.read(ASKED, ANSWER, edits)[2]
    bare = plain.read(ASKED, ANSWER)[2]
    assert float((expected - bare).abs().max()) > 0.05  # the edit does something
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_alignez_is_the_paper_s_edit(engine: TransformersEngine, plain: PlainModel, strength: float) -> None:
    readings = read_sides(engine, SAMPLES, CHARACTERISTICS["help"], CHARACTERISTICS["harm"], "prompt")
    config = FitConfig(method="alignez", layers=(1, 4), neighbors=3)
    [candidate] = AlignEZ().candidates(Material(engine, config, SAMPLES, readings=readings))

    rows: dict[str, Tensor] = {}
    for side, role in (("help", "You are a cheerful"), ("harm", "Pretend you are a gloomy")):
        texts = [
            f"{role} assistant. Your answer should {CHARACTERISTICS[side][s.index]}\n{s.query}\nAnswer:"
            for s in SAMPLES
        ]
        rows[side] = torch.stack([plain.last_mlp(text) for text in texts])  # (N, L, D)
        torch.testing.assert_close(getattr(readings, side), rows[side], atol=1e-4, rtol=1e-3)

    def change(layer: int, chosen: slice) -> Change:
        h, p = top(rows["harm"][chosen, layer]), top(rows["help"][chosen, layer])

        def edit(x: Tensor) -> Tensor:
            x1 = x - strength * (x @ h)[:, None] * h
            return x1 + strength * (x1 @ p)[:, None] * p

        return edit

    every = slice(None)
    plan = plan_at("alignez", config, candidate.edits[0], strength)
    same_logits(engine, plain, plan, {1: change(1, every), 4: change(4, every)})
    # Sample-conditional: the same from the three nearest fit queries' rows.
    assert candidate.neighbor_rows is not None
    near = candidate.neighbor_rows.rows(range(1, 4))
    conditional = neighbor_plan(config, near.layers, near.help, near.harm, strength)
    same_logits(engine, plain, conditional, {1: change(1, slice(1, 4)), 4: change(4, slice(1, 4))})


def test_caa_adds_the_mean_difference_after_one_block(engine: TransformersEngine, plain: PlainModel) -> None:
    config = FitConfig(method="caa", layers=(2, 3))
    candidates = CAA().candidates(Material(engine, config, SAMPLES, help=HELP, harm=HARM))
    assert [c.settings for c in candidates][:2] == [
        {"layers": [2], "multiplier": 0.5}, {"layers": [2], "multiplier": 1.0}
    ]  # fmt: skip

    def mean(answers: dict[int, str], layer: int) -> Tensor:
        rows = [plain.read(f"{s.query}\nAnswer:", answers[s.index])[1][layer].mean(0) for s in SAMPLES]
        return torch.stack(rows).mean(0)

    for candidate in candidates:
        [layer], multiplier = candidate.settings["layers"], candidate.settings["multiplier"]
        vector = mean(HELP, layer) - mean(HARM, layer)
        if multiplier == 2.0:

            def added(x: Tensor, vector: Tensor = vector) -> Tensor:
                return x + 2.0 * vector

            same_logits(engine, plain, candidate.edits[0], {layer: added})
    with pytest.raises(DegenerateEmbeddings, match="both"):
        CAA().candidates(Material(engine, config, SAMPLES, help=HELP))


def test_transport_moves_the_first_position_to_the_persona_s_level(
    engine: TransformersEngine, plain: PlainModel
) -> None:
    config = FitConfig(method="transport", layers=(2,))
    [candidate] = TransportMethod().candidates(Material(engine, config, SAMPLES))
    opening = "You are a cheerful assistant. Always answer in a cheerful manner.\n"
    help_ = torch.stack([plain.last_mlp(f"{opening}{s.query}\nAnswer:")[2] for s in SAMPLES])
    bare = torch.stack([plain.last_mlp(f"{s.query}\nAnswer:")[2] for s in SAMPLES])
    theta = top(help_ - bare)
    tau = float((help_ @ theta).mean())

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[0] += (tau - x[0] @ theta) * theta
        return x

    same_logits(engine, plain, candidate.edits[0], {2: edit})


def test_alignez_by_answers_reads_the_answer_s_tokens(engine: TransformersEngine, plain: PlainModel) -> None:
    last = read_sides(engine, SAMPLES, HELP, HARM, "response_last")
    means = read_sides(engine, SAMPLES, HELP, HARM, "response_mean")
    for row, sample in enumerate(SAMPLES):
        text = f"{sample.query}\nAnswer:{HELP[sample.index]}"
        torch.testing.assert_close(last.help[row], plain.last_mlp(text), atol=1e-4, rtol=1e-3)
        # One more character, so that the last position of the answer itself is read as well.
        x = plain.read(f"{sample.query}\nAnswer:", HELP[sample.index] + "?")[0][:, 1:]
        torch.testing.assert_close(means.help[row], x.mean(1), atol=1e-4, rtol=1e-3)
        text = f"{sample.query}\nAnswer:{HARM[sample.index]}"
        torch.testing.assert_close(last.harm[row], plain.last_mlp(text), atol=1e-4, rtol=1e-3)


def test_readings_know_their_layers_and_rows() -> None:
    rows = torch.arange(24.0).view(3, 4, 2)
    readings = Readings((5, 6, 9), (0, 1, 2, 3), rows, -rows)
    some = readings.at((1, 3)).rows([2, 0])
    assert some.samples == (9, 5)
    assert some.layers == (1, 3)
    assert torch.equal(some.help, rows[[2, 0]][:, [1, 3]])
    with pytest.raises(ValueError, match="harm"):
        Readings((5, 6, 9), (0, 1, 2, 3), rows, rows[:, :, :1])
    with pytest.raises(ValueError, match="help"):
        Readings((5, 6), (0, 1, 2, 3), rows, rows)


def test_a_dose_of_a_stored_plan() -> None:
    h, p = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    config = FitConfig(method="alignez", edit_rule="orthogonal")
    stored = EditPlan.alignez([2], h, p, 1.0, "orthogonal")
    assert plan_at("alignez", config, stored, 0.0).is_identity
    half = plan_at("alignez", config, stored, 0.5)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(half.apply(x, 2), EditPlan.alignez([2], h, p, 0.5, "orthogonal").apply(x, 2))
    added = EditPlan.additive([2], h)
    assert plan_at("distill", FitConfig(), added, 0.5) == EditPlan.additive([2], h, 0.5)


def test_the_prompt_methods_make_prefixes() -> None:
    rows = [*SAMPLES, Sample(9, "Last?", Persona("formal", "slangy"), group=1)]
    material = Material(None, FitConfig(), rows, help=HELP)  # type: ignore[arg-type]
    [prompt] = PromptMethod().candidates(material)
    assert prompt.edits == ()
    assert prompt.prefix is not None
    assert prompt.prefix.system == "You are a cheerful assistant. Always answer in a cheerful manner."
    [urial] = Urial().candidates(material)
    assert urial.prefix is not None
    assert urial.prefix.system == prompt.prefix.system
    assert len(urial.prefix.examples) == 3
    shortest = sorted(HELP.values(), key=len)[:3]
    assert [answer for _, answer in urial.prefix.examples] == [text.strip() for text in shortest]
    with pytest.raises(DegenerateEmbeddings, match="no answers"):
        Urial().candidates(Material(None, FitConfig(), rows))  # type: ignore[arg-type]


def test_the_vote_goes_to_the_larger_group_and_a_tie_to_the_nearer() -> None:
    assert vote([1, 0, 0], [0.9, 0.8, 0.7]) == 0
    assert vote([1, 0], [0.9, 0.8]) == 1
    assert vote([0, 1, 1, 0], [0.9, 0.9, 0.9, 0.9]) == 0  # equal in everything: the first
    assert vote([2], [0.1]) == 2
    assert Candidate("x", "prompt").plan() is None
