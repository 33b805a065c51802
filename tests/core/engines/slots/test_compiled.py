"""The compiled decode step gives the tokens of the uncompiled one, and its plain rows keep every bit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots import compiled
from alignez_core.engines.slots.compiled import key_bucket, row_bucket
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.engines.slots.runner import SlotRunner
from tests.core.engines.contract import EngineContract
from tests.core.engines.slots.watched import watched_engine
from tests.core.engines.test_isolation import alone, requests_with_profiles, tokens
from tests.core.engines.tiny_models import (
    ARCHITECTURES,
    CONTEXT,
    plan,
    prompts,
    slot_runner,
    tiny_engine,
    tiny_model,
    token_ids,
)

pytestmark = [
    # torch 2.13's compiler, when it is imported.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.timeout(1200),  # four programs take a minute alone on this machine and several on a busy one
]
#: Traced, put into functional form and run by torch's own kernels: what inductor gets, in seconds less.
TRACED = "aot_eager"


def runner_of(kind: str, max_slots: int) -> SlotRunner:
    model = tiny_model(kind)
    return slot_runner(model, kind, max_slots)


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    """A compiled engine, which makes no program after its start."""
    with watched_engine(compile=True) as (shared, watched):
        assert watched.runner.programs == 4
        yield shared
        assert watched.runner.programs == 4


@pytest.fixture(autouse=True, scope="module")
def no_trace() -> Iterator[None]:
    """torch writes its structured trace for any handler that the root logger has, pytest's too, which takes minutes."""
    trace = logging.getLogger("torch.__trace")
    before = trace.propagate, trace.level
    trace.propagate = False
    trace.setLevel(logging.CRITICAL)
    yield
    trace.propagate, trace.level = before


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def schedule(
    runner: SlotRunner, requests: list[GenerationRequest], edits: list[EditPlan | None]
) -> list[list[torch.Tensor]]:
    """Each request's logits over one schedule of rows that join, step and leave, fed the same tokens always."""
    live: list[int] = []
    out: list[list[torch.Tensor]] = [[] for _ in requests]

    def join(new: range) -> None:
        runner.prefill([token_ids(requests[i]) for i in new], [edits[i] for i in new])
        live.extend(new)

    def step(count: int) -> None:
        for _ in range(count):
            logits = runner.decode([3 + (37 * i + 11 * len(out[i])) % 256 for i in live])
            for i, row in zip(live, logits, strict=True):
                out[i].append(row.clone())

    def leave(rows: list[int]) -> None:
        for source, target in runner.remove(rows):
            live[target] = live[source]
        del live[runner.rows :]

    third = len(requests) // 3
    join(range(third))
    step(3)
    join(range(third, 2 * third))
    step(3)
    leave([0, 2, 3])
    join(range(2 * third, len(requests)))
    step(4)
    leave(list(range(1, runner.rows)))
    step(3)  # one row alone
    runner.reset()
    return out


def check_schedule(runner: SlotRunner, requests: list[GenerationRequest], expected: list[list[torch.Tensor]]) -> None:
    edits = [request.edit for request in requests]
    mixed = schedule(runner, requests, edits)
    bare = schedule(runner, requests, [None] * len(requests))
    for request, ours, plain, theirs in zip(requests, mixed, bare, expected, strict=True):
        for got, without, uncompiled in zip(ours, plain, theirs, strict=True):
            torch.testing.assert_close(got, uncompiled, atol=2e-5 * float(uncompiled.abs().max()), rtol=1e-4)
            assert request.edit is not None or torch.equal(got, without)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_architecture_can_be_traced(kind: str) -> None:
    requests = requests_with_profiles(6, 6)
    runner = runner_of(kind, 12)
    expected = schedule(runner, requests, [request.edit for request in requests])
    assert runner.compile(backend="eager")
    check_schedule(runner, requests, expected)
    assert runner.programs == 4, "a size that should be a variable has made a program of its own"


@pytest.mark.slow
def test_padding_full_caches_and_all_slots() -> None:
    runner = runner_of("llama", 11)
    requests = requests_with_profiles(6, 6)
    expected = schedule(runner, requests, [request.edit for request in requests])
    assert runner.compile(buckets=True, backend=TRACED)
    check_schedule(runner, requests, expected)

    for rows in (11, 1, 2):
        runner.prefill([[5] * (CONTEXT - 1)] * rows, [plan("alignez", i) for i in range(rows)])
        runner.decode([5] * rows)
        runner.reset()
    runner.prefill([[5] * 60], [EditPlan.alignez([0], torch.ones(1, 32), torch.ones(1, 32))])
    for _ in range(8):  # over a bucket of the cache
        runner.decode([5])
    runner.reset()

    # Three rows run as four; the fourth slot, which a row has just left, is all that may change beside them.
    runner.prefill([[5, 6, 7], [8, 9], [3, 4, 5, 6], [7, 7]], [None] * 4)
    runner.remove([3])
    before = [tensor.clone() for side in runner._cache.tensors() for tensor in side]
    lengths = runner._lengths[:3].copy()
    runner.decode([5, 6, 7])
    after = [tensor for side in runner._cache.tensors() for tensor in side]
    for old, new in zip(before, after, strict=True):
        changed = {tuple(place) for place in (old[:, 0] != new[:, 0]).any(-1).nonzero().tolist()}
        assert changed - {(3, 0)} == {(row, int(length)) for row, length in enumerate(lengths)}
    assert runner.programs == 4


@pytest.mark.slow
def test_an_engine_of_one_slot_and_a_step_that_fails_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, plain = runner_of("llama", 1), runner_of("llama", 1)
    assert runner.compile(backend=TRACED)
    for edit in (None, plan("alignez", 1)):
        runner.prefill([[5, 6, 7]], [edit])
        runner.decode([5])
        runner.reset()
    assert runner.programs == 2

    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("recompiled too often")

    monkeypatch.setattr(compiled.CompiledStep, "__call__", broken)
    caplog.clear()
    for each in (runner, plain):
        each.prefill([[5, 6, 7]], [plan("alignez", 1)])
    for _ in range(3):
        assert torch.equal(runner.decode([4]), plain.decode([4]))
    assert warnings_of(caplog) == ["the decode step runs uncompiled: RuntimeError: recompiled too often"]


@pytest.mark.parametrize(
    ("rows", "slots", "expected"), [(1, 64, 1), (2, 64, 2), (3, 64, 4), (33, 64, 64), (33, 48, 48), (5, 5, 5)]
)
def test_rows_come_in_powers_of_two(rows: int, slots: int, expected: int) -> None:
    assert row_bucket(rows, slots) == expected


def test_key_lengths_come_in_few_buckets_that_hold_them() -> None:
    buckets = {length: key_bucket(length, 32000) for length in range(1, 32001)}
    assert all(length <= bucket <= max(64 + length, 1.25 * length) for length, bucket in buckets.items())
    assert len(set(buckets.values())) == 8 + 4 * 6


def test_without_a_compiler_the_engine_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*args: object) -> None:
        raise RuntimeError("no compiler\nand a page of trace")

    monkeypatch.setattr(compiled.CompiledStep, "_compile", no_compiler)
    requests = requests_with_profiles(2, 2)
    with tiny_engine(compile=True) as engine, tiny_engine() as plain:
        assert tokens(engine, requests) == tokens(plain, requests)
    (message,) = warnings_of(caplog)
    assert message.startswith("the decode step runs uncompiled: ")
    assert "no compiler" in message
    assert "\n" not in message


def test_other_logits_than_the_uncompiled_step_s_are_not_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled.CompiledStep, "__call__", lambda *args: torch.zeros(2, 264))
    monkeypatch.setattr(compiled.CompiledStep, "warm_up", lambda *args: None)
    assert not runner_of("llama", 2).compile(backend=TRACED)
    assert "logits differ by" in caplog.text


@pytest.mark.slow
class TestCompiledEngine(EngineContract):
    """The whole contract, and whole batches, with the real compiler."""

    def test_64_ragged_profiles_give_the_tokens_of_the_uncompiled_engine(self, engine: TransformersEngine) -> None:
        requests = requests_with_profiles(64, 0, tokens=30)
        with tiny_engine() as plain:
            assert tokens(engine, requests) == tokens(plain, requests)

    @pytest.mark.parametrize("kind", ["alignez", "transport"])
    def test_one_method_beside_plain_rows(self, engine: TransformersEngine, kind: str) -> None:
        plans = [plan(kind, seed=i) if i % 2 else None for i in range(64)]
        requests = [
            GenerationRequest(prompt, 12 + i % 9, 0, ignore_eos=True, edit=edit)
            for i, (prompt, edit) in enumerate(zip(prompts(64, seed=2), plans, strict=True))
        ]
        with tiny_engine() as plain:
            assert tokens(engine, requests) == tokens(plain, requests)

    def test_rows_give_alone_what_they_give_in_company(self, engine: TransformersEngine) -> None:
        requests = requests_with_profiles(32, 16)
        assert tokens(engine, requests) == alone(engine, requests)
        bare = tokens(engine, [replace(request, edit=None) for request in requests])
        changed = [a != b for a, b in zip(tokens(engine, requests), bare, strict=True)]
        assert changed == [request.edit is not None for request in requests]


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_that_join_and_leave_get_the_uncompiled_logits_and_plain_ones_keep_every_bit(
    kind: str, buckets: bool
) -> None:
    requests = requests_with_profiles(8, 8)
    runner = runner_of(kind, 16)
    expected = schedule(runner, requests, [request.edit for request in requests])
    assert runner.compile(buckets=buckets)
    check_schedule(runner, requests, expected)
    assert runner.programs == 4
