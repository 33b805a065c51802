"""The plain hooks agree with the engine, and with generation without any cache: three ways to one text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.methods.base import Material
from alignez_core.methods.caa import mean_differences
from alignez_core.models import persona_nano
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample
from research.hooked import Hook, HookedModel, plan_hooks
from research.iti import Probes, fit_probes, probe_accuracy, shift_hooks

QUERIES = persona_nano.query_bank()[:6]
TOKENS = 24


@pytest.fixture(scope="module")
def hooked() -> HookedModel:
    return HookedModel.load(persona_nano.MODEL_DIR, "float32")


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with TransformersEngine.load(persona_nano.MODEL_DIR, dtype="float32") as engine:
        yield engine


def by_engine(engine: TransformersEngine, plan: EditPlan | None, temperature: float, seeds: list[int]) -> list[str]:
    form = engine.prompt_format
    requests = [
        GenerationRequest(form.wrap(query), TOKENS, temperature, seed=seed, stop=form.stop, edit=plan)
        for query, seed in zip(QUERIES, seeds, strict=True)
    ]
    return [completion.text for completion in engine.generate(requests)]


def by_hooks(hooked: HookedModel, hooks: list[Hook], temperature: float, seeds: list[int]) -> list[str]:
    prompts = [hooked.prompt_format.wrap(query) for query in QUERIES]
    return hooked.generate(prompts, seeds, hooks, max_tokens=TOKENS, temperature=temperature)


def without_cache(hooked: HookedModel, register: Callable[[int], RemovableHandle]) -> list[str]:
    """Greedy texts, each token from a pass over the whole text; `register` hooks the model for a prompt length."""
    found = []
    for query in QUERIES:
        ids = hooked.tokens.prompt_ids(hooked.prompt_format.wrap(query))
        handle, start = register(len(ids)), len(ids)
        for _ in range(TOKENS):
            with torch.inference_mode():
                token = int(hooked.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in hooked.tokens.eos_ids:
                break
            ids.append(token)
        handle.remove()
        found.append(hooked.text(ids[start:]))
    return found


def random_plan(n_layers: int, hidden: int, strength: float) -> EditPlan:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(2, 3, hidden, generator=generator) / hidden**0.5 for _ in range(2))
    return EditPlan.low_rank([2, n_layers - 2], u, v, torch.ones(2, 3), strength)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("strength", [0.0, 4.0])
def test_hooks_and_engine_give_the_same_texts(
    hooked: HookedModel, engine: TransformersEngine, temperature: float, strength: float
) -> None:
    seeds = list(range(len(QUERIES)))
    plan = random_plan(hooked.n_layers, engine.info.hidden_size, strength)
    bare = by_engine(engine, None, temperature, seeds)
    edited = by_engine(engine, plan, temperature, seeds)
    assert by_hooks(hooked, [], temperature, seeds) == bare
    assert by_hooks(hooked, plan_hooks(hooked, plan), temperature, seeds) == edited
    assert (edited != bare) == (strength > 0)


def test_a_weight_of_zero_after_some_steps_is_an_edit_of_so_many_steps(
    hooked: HookedModel, engine: TransformersEngine
) -> None:
    plan = random_plan(hooked.n_layers, engine.info.hidden_size, 4.0)
    three = EditPlan(plan.layers, plan.U, plan.V, plan.c, steps=3)
    weighed = plan_hooks(hooked, plan, lambda step: float(step < 3))
    assert by_hooks(hooked, weighed, 0.0, [0] * len(QUERIES)) == by_engine(engine, three, 0.0, [0] * len(QUERIES))


def test_caa_is_what_plain_hooks_read_and_add(hooked: HookedModel, engine: TransformersEngine) -> None:
    """The mean difference from Hugging Face's hidden states, and its addition without any cache."""
    layer, form = 4, engine.prompt_format
    samples = [Sample(i, query, Persona("cheerful", "gloomy")) for i, query in enumerate(QUERIES)]
    texts = [{i: f"{word} answer {i} here." for i in range(len(QUERIES))} for word in ("A happy", "A sad")]
    material = Material(engine, FitConfig(method="caa"), samples, help=texts[0], harm=texts[1])
    vector = mean_differences(material, [layer])[layer]

    means = []
    for side in texts:
        rows = []
        for sample in samples:
            prompt = hooked.tokens.prompt_ids(form.wrap(sample.query))
            ids = [*prompt, *hooked.tokens.continuation_ids(side[sample.index])]
            with torch.inference_mode():
                states = hooked.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            rows.append(states[layer + 1][0, len(prompt) - 1 : -1].mean(0))
        means.append(torch.stack(rows).mean(0))
    assert torch.allclose(vector, means[0] - means[1], atol=1e-4)

    block = hooked.model.get_submodule(f"model.layers.{layer}")

    def adds(length: int) -> RemovableHandle:
        def hook(module: object, inputs: object, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[:, length - 1 :] += 2.0 * vector
            return changed

        return block.register_forward_hook(hook)

    plain = without_cache(hooked, adds)
    plan = EditPlan.additive([layer], vector[None], 2.0)
    assert by_engine(engine, plan, 0.0, [0] * len(QUERIES)) == plain
    assert plain != by_engine(engine, None, 0.0, [0] * len(QUERIES))


def test_iti_is_what_plain_hooks_read_and_add(hooked: HookedModel) -> None:
    """Directions and σ from captured inputs of the projections, one head at a time, and the shift without any cache."""
    form = hooked.prompt_format
    good = [form.wrap(query) + f"Happy day {i}!" for i, query in enumerate(QUERIES)]
    bad = [form.wrap(query) + f"Tears come {i}." for i, query in enumerate(QUERIES)]
    probes = fit_probes(hooked, good, bad)
    layer, head = 3, 1
    size = probes.direction.shape[-1]
    caught: list[Tensor] = []
    handle = hooked.projections()[layer].register_forward_pre_hook(lambda m, inputs: caught.append(inputs[0][0, -1]))
    with torch.inference_mode():
        for text in [*good, *bad]:
            hooked.model(input_ids=torch.tensor([hooked.tokens.prompt_ids(text)]))
    handle.remove()
    rows = torch.stack(caught)[:, head * size : (head + 1) * size].reshape(2, len(QUERIES), size)
    fit = rows[:, :-1]  # the last pair validates
    theta = fit[0].mean(0) - fit[1].mean(0)
    theta = theta / theta.norm()
    assert torch.allclose(probes.direction[layer, head], theta, atol=1e-4)
    assert float(probes.sigma[layer, head]) == pytest.approx(float((fit.flatten(0, 1) @ theta).std()), rel=1e-3)

    only = Probes(torch.zeros_like(probes.accuracy), probes.direction, probes.sigma)
    only.accuracy[layer, head] = 1.0
    alpha = 8.0
    shift = torch.zeros(hooked.n_heads * size)
    shift[head * size : (head + 1) * size] = alpha * probes.sigma[layer, head] * theta

    def adds(length: int) -> RemovableHandle:
        def hook(module: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            changed = inputs[0].clone()
            changed[:, length - 1 :] += shift
            return (changed, *inputs[1:])

        return hooked.projections()[layer].register_forward_pre_hook(hook)

    plain = without_cache(hooked, adds)
    shifted = by_hooks(hooked, shift_hooks(hooked, only, 1, alpha), 0.0, [0] * len(QUERIES))
    assert shifted == plain
    assert shifted != by_hooks(hooked, [], 0.0, [0] * len(QUERIES))


def test_probes_find_the_heads_that_tell_the_sides_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 2, 3, 4, generator=generator)
    rows[:100, 1, 2, 0] += 6.0  # one head of six knows
    order = torch.cat([torch.arange(0, 80), torch.arange(100, 180), torch.arange(80, 100), torch.arange(180, 200)])
    accuracy = probe_accuracy(rows[order[:160]], rows[order[160:]], 80, 20)
    assert float(accuracy[1, 2]) > 0.95
    assert float(accuracy.flatten().sort().values[-2]) < 0.8


def test_probes_agree_with_a_fit_by_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(120, 1, 1, 3, generator=generator)
    rows[:60, 0, 0, 1] += 1.0
    found = float(probe_accuracy(rows, rows, 60, 60)[0, 0])
    x = rows[:, 0, 0]
    x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(120, 1)], dim=1)
    y, weights = (torch.arange(120) < 60).float(), torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights, y, reduction="sum")
        value = value + 0.5 * (weights[:-1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    expected = float((((x @ weights) > 0) == (y > 0)).float().mean())
    assert found == pytest.approx(expected, abs=1e-6)
