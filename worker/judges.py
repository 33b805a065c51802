"""The judges of a worker, by the names that fits and evaluations use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from alignez_core.errors import AlignezError, JudgeUnavailable
from alignez_core.proof.judges import Judge, Likelihoods, NanoJudge, SelfJudge
from alignez_core.spec.config import FitConfig
from worker.settings import WorkerSettings

log = structlog.get_logger("worker")

T = TypeVar("T")

#: Makes a judge by name; None: the fitted model itself.
JudgeMaker = Callable[[str], Judge | None]


def make_judge(name: str, settings: WorkerSettings) -> Judge | None:
    """The judge of this name; None for "self", which the core makes from the fitted model.

    Raises: JudgeUnavailable: the judge is not configured, or its model cannot be loaded.
    """
    kind, _, path = name.partition(":")
    if kind == "self":
        return None
    if kind == "nano":
        return NanoJudge()
    if kind == "openai":
        return _openai(settings)
    if kind == "reward":
        from alignez_core.proof.reward_judge import RewardJudge

        return RewardJudge(path, settings.device)
    return _model(path, settings)


def judged(make: JudgeMaker, config: FitConfig, act: Callable[[Judge | None], T]) -> tuple[T, str | None]:
    """Result of `act` with the judge of the settings, and the reason if the model itself judged instead.

    If a judge fails during `act`, `act` runs again with the model, so that all verdicts are from one judge.

    Raises: JudgeUnavailable: the settings do not allow a fallback. Any error of `act`.
    """
    try:
        judge = make(config.judge)
        try:
            return act(judge), None
        finally:
            if judge is not None:
                judge.close()
    except JudgeUnavailable as error:
        if not config.judge_fallback:
            raise
        log.warning("judge_unavailable", judge=config.judge, reason=str(error), then="self")
        return act(None), str(error)


def _openai(settings: WorkerSettings) -> Judge:
    from alignez_core.proof.openai_judge import OpenAIJudge

    if settings.judge_url is None or settings.judge_model is None:
        raise JudgeUnavailable(
            "the judge 'openai' is not configured: set ALIGNEZ_WORKER_JUDGE_URL and ALIGNEZ_WORKER_JUDGE_MODEL"
        )
    key = None if settings.judge_key is None else settings.judge_key.get_secret_value()
    return OpenAIJudge(settings.judge_url, settings.judge_model, key, timeout_s=settings.judge_timeout_s)


def _model(path: str, settings: WorkerSettings) -> Judge:
    from alignez_core.engines.slots.engine import TransformersEngine

    try:
        engine = TransformersEngine.load(
            path, device=settings.device, dtype=settings.dtype, max_slots=settings.max_batch, threads=settings.threads
        )
    except AlignezError as error:
        raise JudgeUnavailable(f"the judge model {path} cannot be loaded: {error}") from error
    return SelfJudge(Likelihoods(engine), f"model:{path}", owned=engine)
