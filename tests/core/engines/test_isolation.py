"""A row gives what it gives alone, whoever shares its batch; a row without an edit keeps every bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from tests.core.engines.contract import wait_until
from tests.core.engines.slots.watched import watched_engine
from tests.core.engines.tiny_models import plan, prompts, slot_runner, tiny_engine, tiny_model, token_ids

METHODS = (
    {"kind": "alignez"},
    {"kind": "transport", "steps": 1},
    {"kind": "transport", "steps": 3},
    {"kind": "additive"},
    {"kind": "distill"},
    {"kind": "strong"},
    {"kind": "alignez", "positions": "all"},
)


def requests_with_profiles(edited: int, plain: int, tokens: int = 10) -> list[GenerationRequest]:
    """Ragged requests, greedy, `edited` of them with plans of their own and of all methods, mixed with plain ones."""
    made: list[GenerationRequest] = []
    plans: list[EditPlan | None] = [plan(seed=i, **METHODS[i % len(METHODS)]) for i in range(edited)] + [None] * plain
    order = torch.randperm(len(plans), generator=torch.Generator().manual_seed(1)).tolist()
    for i, prompt in zip(order, prompts(len(plans), seed=11), strict=True):
        made.append(GenerationRequest(prompt, tokens + i % 7, 0, ignore_eos=True, edit=plans[i]))
    assert len({p.sha256 for p in plans if p is not None}) == edited
    return made


def alone(engine: TransformersEngine, requests: list[GenerationRequest]) -> list[tuple[int, ...]]:
    return [engine.generate([request])[0].token_ids for request in requests]


def tokens(engine: TransformersEngine, requests: list[GenerationRequest]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in engine.generate(requests)]


def test_32_profiles_and_16_plain_requests_give_their_own_tokens(engine: TransformersEngine) -> None:
    requests = requests_with_profiles(32, 16)
    expected = alone(engine, requests)
    assert tokens(engine, requests) == expected
    bare = tokens(engine, [replace(request, edit=None) for request in requests])
    changed = [a != b for a, b in zip(expected, bare, strict=True)]
    assert changed == [request.edit is not None for request in requests]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo"])
def test_64_profiles_in_one_batch_give_their_own_tokens(kind: str) -> None:
    with tiny_engine(kind) as engine:
        requests = requests_with_profiles(64, 0, tokens=30)
        assert tokens(engine, requests) == alone(engine, requests)


def test_32_profiles_and_16_plain_streams_that_join_midway_give_their_own_tokens(engine: TransformersEngine) -> None:
    """Four groups of twelve, each let in when the ones before have made three tokens more; all are open together."""
    requests = requests_with_profiles(32, 16, tokens=20)
    expected = alone(engine, requests)
    with watched_engine() as (own, watched):
        rows_of_steps: list[int] = []
        steps, inside, hold = threading.Semaphore(0), threading.Event(), threading.Event()

        def join_when_told(prefill: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
            inside.set()
            hold.wait(30)
            return prefill(*args)

        def step_when_told(decode: Callable[..., torch.Tensor], fed: list[int]) -> torch.Tensor:
            rows_of_steps.append(len(fed))
            steps.acquire(timeout=30)
            return decode(fed)

        watched.on |= {"prefill": join_when_told, "decode": step_when_told}
        # Its prefill is held until the first group has been queued, so that this group, too, joins as one.
        first = own.stream(GenerationRequest([5], 1, 0, ignore_eos=True))
        assert inside.wait(30)
        streams = []
        for group in range(4):
            streams += [own.stream(request) for request in requests[12 * group : 12 * group + 12]]
            hold.set()
            steps.release(3)
            wait_until(lambda group=group: len(rows_of_steps) == 3 * group + 4)  # held before the next step
        steps.release(200)
        assert len(list(first)) == 1
        got = [tuple(token for chunk in stream for token in chunk.token_ids) for stream in streams]
    assert rows_of_steps[:13] == [12] * 4 + [24] * 3 + [36] * 3 + [48] * 3
    assert got == expected


def logits_of(requests: list[GenerationRequest], fed: torch.Tensor) -> list[torch.Tensor]:
    """Logits of a prefill and of each decode step of one batch that is fed the same tokens whatever it would say."""
    model = tiny_model("llama")
    runner = slot_runner(model, "llama", len(requests))
    out = [runner.prefill([token_ids(r) for r in requests], [r.edit for r in requests])]
    return out + [runner.decode(step.tolist()) for step in fed]


def test_plain_rows_and_strength_zero_keep_every_bit_beside_edited_rows() -> None:
    requests = requests_with_profiles(32, 16)
    zero = next(i for i, request in enumerate(requests) if request.edit is not None)
    requests[zero] = replace(requests[zero], edit=plan("alignez", 99, strength=0.0))
    fed = torch.randint(3, 259, (6, len(requests)), generator=torch.Generator().manual_seed(2))
    bare = logits_of([replace(request, edit=None) for request in requests], fed)
    mixed = logits_of(requests, fed)
    for row, request in enumerate(requests):
        same = [torch.equal(a[row], b[row]) for a, b in zip(bare, mixed, strict=True)]
        if request.edit is None or row == zero:
            assert all(same)
        else:
            assert not any(same)


def test_plain_rows_keep_every_bit_while_edited_rows_come_and_go() -> None:
    made = requests_with_profiles(16, 8)
    edited, plain = ([r for r in made if (r.edit is None) == bare] for bare in (False, True))
    requests = edited[:10] + plain + edited[10:]  # so that plain rows move into slots that edited ones left, and back

    def run(edit_of: Callable[[GenerationRequest], EditPlan | None]) -> dict[int, list[torch.Tensor]]:
        """Each request's logits over one schedule of prefills, steps and leaving rows, fed the same tokens always."""
        model = tiny_model("llama")
        runner = slot_runner(model, "llama", len(requests))
        live: list[int] = []
        out: dict[int, list[torch.Tensor]] = {i: [] for i in range(len(requests))}

        def join(new: range) -> None:
            logits = runner.prefill([token_ids(requests[i]) for i in new], [edit_of(requests[i]) for i in new])
            live.extend(new)
            for i, row in zip(new, logits, strict=True):
                out[i].append(row)

        def step(count: int) -> None:
            for _ in range(count):
                logits = runner.decode([3 + (37 * i + 11 * len(out[i])) % 256 for i in live])
                for i, row in zip(live, logits, strict=True):
                    out[i].append(row)

        def leave(rows: list[int]) -> None:
            for source, target in runner.remove(rows):
                live[target] = live[source]
            del live[runner.rows :]

        join(range(8))
        step(2)
        join(range(8, 16))
        step(2)
        leave([0, 3, 4, 9])
        step(2)
        join(range(16, 24))  # some into slots that edited rows have left
        step(2)
        leave([1, 10, 11])
        step(3)
        return out

    mixed, bare = run(lambda request: request.edit), run(lambda request: None)
    for i, request in enumerate(requests):
        same = [torch.equal(a, b) for a, b in zip(mixed[i], bare[i], strict=True)]
        assert all(same) if request.edit is None else not any(same)


def test_a_seeded_request_samples_the_same_tokens_alone_and_in_company(engine: TransformersEngine) -> None:
    requests = [
        replace(request, temperature=0.5 + i % 3, top_k=(0, 9, 0)[i % 3], top_p=(1.0, 1.0, 0.8)[i % 3], seed=i // 2)
        for i, request in enumerate(requests_with_profiles(12, 12))
    ]
    assert tokens(engine, requests) == alone(engine, requests)
    greedy = tokens(engine, [replace(request, temperature=0.0) for request in requests])
    assert all(a != b for a, b in zip(tokens(engine, requests), greedy, strict=True))


def test_the_same_prompt_with_different_seeds_gives_different_tokens(engine: TransformersEngine) -> None:
    request = GenerationRequest(prompts(1)[0], 8, 1.5, ignore_eos=True)
    assert len(set(tokens(engine, [replace(request, seed=seed) for seed in range(16)]))) == 16
    assert len(set(tokens(engine, [request] * 16))) == 16


@pytest.mark.parametrize("edited", [0, 1, 4])
def test_one_edited_row_among_plain_ones_may_have_any_place(edited: int) -> None:
    """A new engine, whose tables hold nothing yet."""
    requests = [GenerationRequest(prompt, 6, 0, ignore_eos=True) for prompt in prompts(5, seed=4)]
    requests[edited] = replace(requests[edited], edit=plan("alignez", 3))
    with tiny_engine() as own:
        together = tokens(own, requests)
    with tiny_engine() as own:
        assert together == alone(own, requests)
