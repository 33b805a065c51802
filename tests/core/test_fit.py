"""fit_profile on an engine whose representations hold a planted persona."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch

from alignez_core.engines.base import ScoreRequest
from alignez_core.engines.fake_engine import FakeEngine
from alignez_core.engines.transformers_engine import TransformersEngine
from alignez_core.errors import FitCancelled, InvalidInput, LayerOutOfRange, TooFewSamples
from alignez_core.fit import FitEvent, FittedProfile, PairChunk, fit_profile
from alignez_core.fit_config import FitConfig, FitQuery, FitSpec, GivenPair
from alignez_core.neighbors import nearest
from alignez_core.prompts import Persona
from alignez_core.request_edit import conditional_plan
from tests.core.engines.tiny_models import byte_tokenizer, tiny_model

QUERIES = tuple(FitQuery(f"What should I know about thing number {i}?") for i in range(24))
PERSONA = Persona("cheerful", "gloomy")
SHIFT = 6.0


class PlantedEngine(FakeEngine):
    """A fake whose help (harm) prompts move the representation along a known axis, and whose edits raise scores.

    `expressive=False` plants the geometry but lets the persona change nothing in what is said.
    """

    def __init__(self, *, expressive: bool = True) -> None:
        super().__init__()
        self.expressive = expressive
        self.generated = 0
        self.tokens = 0

    def generate(self, requests):
        completions = super().generate(requests)
        self.generated += len(requests)
        self.tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    def represent(self, texts, positions="last"):
        rows = super().represent(texts, positions)
        axis = torch.zeros(rows.shape[-1])
        axis[0] = 1.0
        for i, text in enumerate(texts):
            if isinstance(text, str):
                rows[i] += SHIFT * axis if "You are a cheerful" in text else 0
                rows[i] -= SHIFT * axis if "Pretend you are a gloomy" in text else 0
        return rows

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        def gain(request: ScoreRequest) -> float:
            if not self.expressive:
                return 0.0
            return 1.0 if "cheerful" in str(request.prompt) else 0.6 * (request.edit is not None)

        super().score(requests)  # refuses what the context does not hold
        return [torch.full((4,), -3.0 + gain(r)) - 0.01 * len(str(r.continuation)) for r in requests]


def spec(**config: object) -> FitSpec:
    return FitSpec(PERSONA, QUERIES, (), FitConfig(**config))  # type: ignore[arg-type]


def test_the_planted_axis_is_found_in_every_layer_and_tau_is_the_persona_s_level() -> None:
    engine = PlantedEngine()
    fitted = fit_profile(engine, spec())
    assert fitted.layers == tuple(range(engine.info.n_layers))
    assert torch.all(fitted.theta[:, 0] > 0.9)
    expected = torch.einsum("nld,ld->nl", fitted.help, fitted.theta).mean(0)
    assert torch.allclose(fitted.tau, expected, atol=1e-5)
    assert fitted.plan().steps == 1
    assert len(fitted.pairs) == len(fitted.embeddings) == 24
    json.dumps(fitted.diagnostics)


def test_alignez_keeps_five_layers_at_most_and_edits_to_the_end() -> None:
    fitted = fit_profile(PlantedEngine(), spec(method="alignez", layers=2))
    assert len(fitted.layers) == 2
    assert fitted.plan().steps is None
    assert fitted.plan().rank == 2


def test_a_conditional_edit_of_a_fit_query_uses_its_own_neighbourhood() -> None:
    fitted = fit_profile(PlantedEngine(), spec(neighbors=5))
    near = nearest(fitted.embeddings[3], fitted.embeddings, 5)
    assert int(near[0]) == 3
    plan = conditional_plan(fitted.spec.config, fitted.layers, fitted.help[near], fitted.harm[near], fitted.plain[near])
    assert plan.sha256 != fitted.plan().sha256
    assert plan.layers == fitted.layers


def test_a_separable_and_expressed_persona_is_good() -> None:
    fitted = fit_profile(PlantedEngine(), spec())
    assert fitted.quality == "good"
    assert fitted.diagnostics["evaluation"]["separation"] > 0.95
    assert fitted.diagnostics["evaluation"]["recovery"] == pytest.approx(0.6, abs=0.01)


def test_a_persona_that_the_model_cannot_express_is_weak_and_says_why() -> None:
    fitted = fit_profile(PlantedEngine(expressive=False), spec())
    assert fitted.quality == "weak"
    assert any("hardly expresses" in reason for reason in fitted.quality_reasons)


def test_directions_that_do_not_separate_are_weak_and_say_why() -> None:
    fitted = fit_profile(FakeEngine(), spec())
    assert fitted.quality == "weak"
    assert any("do not separate" in reason for reason in fitted.quality_reasons)


def interrupted(after: int) -> tuple[list[PairChunk], PlantedEngine]:
    """The chunks that a fit had handed out when it was stopped after that many."""
    chunks: list[PairChunk] = []

    def stop_after(event: FitEvent) -> None:
        if event.chunk is not None:
            chunks.append(event.chunk)
            if len(chunks) == after:
                raise FitCancelled("stopped")

    engine = PlantedEngine()
    with pytest.raises(FitCancelled):
        fit_profile(engine, spec(chunk_size=8, own_queries=4), stop_after)
    return chunks, engine


@pytest.mark.parametrize("after", [1, 2, 4, 6])
def test_a_resumed_fit_equals_an_uninterrupted_one_and_generates_nothing_twice(after: int) -> None:
    whole_engine = PlantedEngine()
    whole = fit_profile(whole_engine, spec(chunk_size=8, own_queries=4))
    chunks, first = interrupted(after)
    second = PlantedEngine()
    resumed = fit_profile(second, spec(chunk_size=8, own_queries=4), resume=chunks)
    assert resumed.sha256 == whole.sha256
    assert resumed.pairs == whole.pairs
    assert first.generated + second.generated == whole_engine.generated
    assert whole.diagnostics["last_attempt"]["tokens_generated"] == whole_engine.tokens
    assert resumed.diagnostics["last_attempt"]["tokens_generated"] == second.tokens
    assert second.tokens < whole_engine.tokens


def test_batching_does_not_change_what_is_generated() -> None:
    one, other = (fit_profile(PlantedEngine(), spec(chunk_size=size)) for size in (5, 24))
    assert one.pairs == other.pairs


def test_progress_covers_every_stage_to_its_end() -> None:
    events: list[FitEvent] = []
    fit_profile(PlantedEngine(), spec(chunk_size=10), events.append)
    last = {e.stage: (e.done, e.total) for e in events}
    assert list(last) == ["characteristics", "responses", "representations", "directions", "evaluation"]
    assert all(done == total for done, total in last.values())


@pytest.mark.parametrize(("responses", "expected"), [(0, 0), (7, 7), ("all", 24), (500, 24)])
def test_responses_are_made_for_as_many_as_asked(responses: object, expected: int) -> None:
    fitted = fit_profile(PlantedEngine(), spec(responses=responses))
    assert sum(p.help_response is not None for p in fitted.pairs) == expected


@pytest.mark.parametrize("representation", ["response_last", "response_mean"])
def test_response_representations_need_and_make_all_responses(representation: str) -> None:
    fitted = fit_profile(PlantedEngine(), spec(method="alignez", representation=representation, responses=1, layers=2))
    assert all(p.help_response for p in fitted.pairs)


def test_given_pairs_are_used_as_they_are() -> None:
    pairs = tuple(GivenPair(q.text, f"Great, number {i}!", f"Bad, number {i}.") for i, q in enumerate(QUERIES))
    engine = PlantedEngine()
    fitted = fit_profile(engine, FitSpec(PERSONA, (), pairs, FitConfig()))
    assert engine.generated == 0
    assert fitted.pairs[2].help_response == "Great, number 2!"
    assert fitted.pairs[2].origin == "pair"
    assert "Bad, number 2." in fitted.pairs[2].harm_characteristics


def given_pairs(count: int) -> list[GivenPair]:
    return [GivenPair(f"What is thing {i}?", f"Great, number {i}!", f"Bad, number {i}.") for i in range(count)]


@pytest.mark.parametrize("responses", [0, 32, "all"])
def test_every_given_pair_keeps_its_answers_and_the_others_get_as_many_as_asked(responses: object) -> None:
    config = FitConfig(responses=responses)  # type: ignore[arg-type]
    fitted = fit_profile(PlantedEngine(), FitSpec(PERSONA, QUERIES * 2, tuple(given_pairs(70)), config))
    given = [pair for pair in fitted.pairs if pair.origin == "pair"]
    assert [pair.help_response for pair in given] == [f"Great, number {i}!" for i in range(70)]
    assert [pair.harm_response for pair in given] == [f"Bad, number {i}." for i in range(70)]
    made = sum(pair.help_response is not None for pair in fitted.pairs if pair.origin == "query")
    assert made == {0: 0, 32: 32, "all": 48}[responses]


def test_a_pair_too_long_to_be_scored_is_left_out_of_the_evaluation_and_one_too_long_to_be_read_out_of_the_fit() -> (
    None
):
    pairs = given_pairs(24)
    pairs[3] = GivenPair("What is thing 3?", "Great! " * 300, "Bad.")  # as an example and as an answer: over 512
    pairs[7] = GivenPair("What is thing 7?", "Great!", "Bad. " * 600)
    fitted = fit_profile(PlantedEngine(), FitSpec(PERSONA, (), tuple(pairs), FitConfig()))
    assert fitted.quality == "good"
    assert fitted.diagnostics["evaluation"]["unscored_pairs"] == 1
    assert fitted.diagnostics["dropped_pairs"] == 1
    assert list(fitted.dropped) == [7]
    assert "the context holds 512" in fitted.dropped[7]
    assert [pair.index for pair in fitted.pairs] == [i for i in range(24) if i != 7]


def test_when_no_pair_can_be_scored_the_fit_is_weak_and_says_why() -> None:
    pairs = tuple(GivenPair(f"What is thing {i}?", "Great! " * 300, "Bad.") for i in range(12))
    fitted = fit_profile(PlantedEngine(), FitSpec(PERSONA, (), pairs, FitConfig()))
    assert fitted.quality == "weak"
    assert any("none of the 12 response pairs fits" in reason for reason in fitted.quality_reasons)


@pytest.mark.parametrize(
    ("config", "is_kept"), [({}, True), ({"method": "alignez", "representation": "response_last"}, False)]
)
def test_a_query_that_leaves_no_room_for_a_response_goes_without(config: dict[str, object], is_kept: bool) -> None:
    """Where the fit reads responses it is dropped, with the reason; nothing else of the fit is lost."""
    queries = [*QUERIES]
    queries[5] = FitQuery("Why " * 300)
    events: list[FitEvent] = []
    settings = FitConfig(response_tokens=200, **config)  # type: ignore[arg-type]
    fitted = fit_profile(PlantedEngine(), FitSpec(PERSONA, tuple(queries), (), settings), events.append)
    assert fitted.diagnostics["responses_without_room"] == 1
    assert [e.done for e in events if e.stage == "responses"][-1] == 24
    pairs = {pair.index: pair for pair in fitted.pairs}
    assert (5 in pairs) == is_kept
    if is_kept:
        assert pairs[5].help_response is None
        assert fitted.dropped == {}
    else:
        assert fitted.dropped == {5: "no room for a response in the context"}
    assert all(pairs[i].help_response for i in range(24) if i != 5)


def test_the_transport_direction_s_share_of_energy_is_stored_per_edited_layer() -> None:
    fitted = fit_profile(PlantedEngine(), spec(layers=(1, 3)))
    rows = (fitted.help - fitted.plain).transpose(0, 1)
    squares = torch.linalg.svdvals(rows.double()) ** 2
    expected = (squares[:, 0] / squares.sum(1)).tolist()
    assert fitted.diagnostics["energy_transport"] == pytest.approx(expected, abs=1e-4)
    assert len(expected) == 2


def mlp_outputs_of(text: str) -> torch.Tensor:
    """(L, T, D) MLP outputs of the tiny Llama, read with a plain hook."""
    model, seen = tiny_model("llama", max_position_embeddings=512), []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    with torch.no_grad():
        model(torch.tensor([byte_tokenizer(adds_bos=True).encode(text)]))
    return torch.stack(seen)


@pytest.mark.parametrize("representation", ["response_last", "response_mean"])
def test_response_representations_read_the_response_s_last_token_or_the_mean_of_its_tokens(representation: str) -> None:
    pairs = [
        ("What now?", "Good, go on.", "No."),
        ("Is it late?", "Not at all!", "Too late, né"),
        ("Who?", "You", "Me"),
    ]
    given = tuple(GivenPair(*pair) for pair in pairs)
    config = FitConfig(method="alignez", representation=representation, neighbors=2, layers="all")  # type: ignore[arg-type]
    model = tiny_model("llama", max_position_embeddings=512)
    with TransformersEngine.from_model(model, byte_tokenizer(adds_bos=True), "x", name="x") as engine:
        fitted = fit_profile(engine, FitSpec(PERSONA, (), given, config))
    for i, (query, good, bad) in enumerate(pairs):
        for answer, rows in ((good, fitted.help), (bad, fitted.harm)):
            outputs = mlp_outputs_of(f"{query}\nAnswer: {answer}")
            tokens = len(f" {answer}".encode())  # one per byte, the space before the answer included
            assert outputs.shape[1] == 1 + len(f"{query}\nAnswer:".encode()) + tokens
            expected = outputs[:, -1] if representation == "response_last" else outputs[:, -tokens:].mean(1)
            torch.testing.assert_close(rows[i], expected, atol=1e-5, rtol=1e-4)


def test_a_query_s_own_phrases_replace_the_persona_s() -> None:
    queries = (*QUERIES, FitQuery("At work, what now?", preferred="formal", dispreferred="slang"))
    fitted = fit_profile(PlantedEngine(), FitSpec(PERSONA, queries))
    assert (fitted.pairs[-1].preferred, fitted.pairs[-1].dispreferred) == ("formal", "slang")
    assert fitted.pairs[0].preferred == "cheerful"


def test_specs_that_do_not_fit_are_refused_before_anything_is_generated() -> None:
    engine = PlantedEngine()
    with pytest.raises(TooFewSamples, match=r"neighbors=25 .* 24 "):
        fit_profile(engine, spec(neighbors=25))
    with pytest.raises(LayerOutOfRange, match="layer 4"):
        fit_profile(engine, spec(layers=(0, 4)))
    with pytest.raises(InvalidInput, match="representation"):
        spec(representation="response_last")
    with pytest.raises(InvalidInput, match="queries"):
        FitSpec(PERSONA, ())
    assert engine.generated == 0


def test_config_survives_its_dictionary_and_names_what_is_wrong() -> None:
    config = FitConfig(layers=(4, 2), steps=None, responses="all")
    assert FitConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for name, value in {"neighbors": 0, "strength": float("nan"), "method": "magic", "layers": [1, 1], "seed": -1,
                        "steps": 0, "conditional": 1, "speed": 3, "query_encoder": ""}.items():  # fmt: skip
        with pytest.raises(InvalidInput, match=name):
            FitConfig.from_dict({name: value})


def test_the_hash_follows_the_content() -> None:
    one, same = fit_profile(PlantedEngine(), spec()), fit_profile(PlantedEngine(), spec())
    other = fit_profile(PlantedEngine(), spec(seed=1))
    assert isinstance(one, FittedProfile)
    assert one.sha256 == same.sha256 != other.sha256
