"""From a spec to a fitted profile: the model's own data, directions per layer, and what they are worth.

`fit_profile` only composes and keeps no state outside its arguments; `fit_run` holds the account of one fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from alignez_core.directions import Directions, Transport, fit_directions, fit_transport
from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.evaluation import Evaluation, evaluate_fit
from alignez_core.fit_config import (
    DEFAULT_ALIGNEZ_LAYERS,
    FitConfig,
    FitQuery,
    FitSpec,
    GivenPair,
)
from alignez_core.fit_run import STAGES, FitEvent, FitRun, PairChunk
from alignez_core.layer_selection import LayerChoice, layer_scores, select_layers
from alignez_core.prompts import Persona
from alignez_core.request_edit import global_plan
from alignez_core.self_preference import Sample, TextPair

__all__ = [
    "STAGES", "FitConfig", "FitEvent", "FitQuery", "FitSpec", "FittedProfile", "GivenPair", "PairChunk",
    "Persona", "PreferencePair", "fit_profile",
]  # fmt: skip


@dataclass(frozen=True)
class PreferencePair:
    """What the model said for one sample; responses only for those that were sampled."""

    index: int
    query: str
    preferred: str
    dispreferred: str
    help_characteristics: str
    harm_characteristics: str
    help_response: str | None = None
    harm_response: str | None = None
    origin: Literal["query", "pair", "model"] = "query"


@dataclass(frozen=True, eq=False)
class FittedProfile:
    """Everything that a profile version stores. N samples, L edited layers, D hidden size, E embedding size.

    Args:
        fingerprint: of the model it was fitted on.
        layers: the edited ones, ascending.
        pairs: N of them; row i of every tensor belongs to pairs[i].
        embeddings: (N, E) unit rows. help, harm, plain: (N, L, D) representations at the edited layers, float32.
        theta_help, theta_harm, theta: (L, D); tau: (L,): the directions over all samples.
        dropped: sample index → why it is not among the pairs.
        diagnostics: JSON-able. quality: "weak" never comes without reasons.
        sha256: content hash over configuration, layers and every number that an edit can depend on.
    """

    spec: FitSpec
    fingerprint: str
    layers: tuple[int, ...]
    pairs: tuple[PreferencePair, ...]
    embeddings: Tensor
    help: Tensor
    harm: Tensor
    plain: Tensor
    theta_help: Tensor
    theta_harm: Tensor
    theta: Tensor
    tau: Tensor
    diagnostics: dict[str, Any]
    quality: Literal["good", "weak"]
    quality_reasons: tuple[str, ...] = ()
    dropped: Mapping[int, str] = field(default_factory=dict)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        sha = hashlib.sha256(b"alignez-profile-1")
        head = [self.fingerprint, list(self.layers), self.spec.config.to_dict()]
        sha.update(json.dumps(head, sort_keys=True).encode())
        for value in (self.embeddings, self.help, self.harm, self.plain, self.theta_help, self.theta_harm, self.theta,
                      self.tau):  # fmt: skip
            sha.update(value.contiguous().numpy().astype("<f4").tobytes())
        object.__setattr__(self, "sha256", sha.hexdigest())

    def plan(self, strength: float | None = None) -> EditPlan:
        """The edit with the directions over all samples (`conditional=False`)."""
        return global_plan(
            self.spec.config, self.layers, theta_help=self.theta_help, theta_harm=self.theta_harm, theta=self.theta,
            tau=self.tau, strength=strength,
        )  # fmt: skip


def fit_profile(
    engine: Engine,
    spec: FitSpec,
    progress: Callable[[FitEvent], None] | None = None,
    resume: Sequence[PairChunk] = (),
) -> FittedProfile:
    """Fits a profile on the model's own preference data.

    Args:
        engine: the base model; shared with whatever else it serves.
        spec: persona, queries, pairs, settings.
        progress: called between batches; raising from it (`FitCancelled`, a lost lease) stops the fit there.
        resume: chunks of an earlier, interrupted run of the same spec; they are not generated again.
    Raises: InvalidInput, LayerOutOfRange, TooFewSamples: the spec does not fit the model or its own queries.
        DegenerateEmbeddings: no direction can be found. ContextTooLong: a query leaves no room for its characteristics.
        OutOfMemory: from the engine.
    Source: AlignEZ (arXiv 2406.03642), Algorithm 1, sections 2.1 to 2.4. Deviations: `representation`, the layer score
        and `method="transport"`, as their own docstrings say.
    """
    config = spec.config
    config.check_model(engine.info.n_layers)
    config.check_samples(len(spec.queries) + len(spec.pairs) + config.own_queries)
    run = FitRun(engine, spec, progress or (lambda event: None), resume)
    samples = run.samples()
    config.check_samples(len(samples))
    characteristics = run.texts("characteristics", samples, {})
    responses = run.texts("responses", run.sampled(samples), characteristics)
    kept, embeddings, help_, harm, plain = run.represent(samples, characteristics, responses)
    config.check_samples(len(kept))

    run.report("directions", 0, len(kept))
    found = fit_directions(help_, harm)
    choice = _choose_layers(config, found, engine.info.n_layers)
    edited = list(choice.layers)
    help_, harm, plain = (t[:, edited].contiguous() for t in (help_, harm, plain))
    transport = _transport_or_none(config, help_, plain)
    run.report("directions", len(kept), len(kept))

    run.report("evaluation", 0, 1)
    evaluation = evaluate_fit(
        engine, config, choice.layers, kept, characteristics, responses, embeddings, help_, harm, plain,
        without_room=len(run.no_room),
    )  # fmt: skip
    run.report("evaluation", 1, 1)
    theta = torch.zeros_like(found.theta_help[edited]) if transport is None else transport.theta
    tau = torch.zeros(len(edited)) if transport is None else transport.tau
    return FittedProfile(
        spec=spec,
        fingerprint=engine.info.fingerprint,
        layers=choice.layers,
        pairs=tuple(_record(spec, s, characteristics, responses) for s in kept),
        embeddings=embeddings,
        help=help_,
        harm=harm,
        plain=plain,
        theta_help=found.theta_help[edited].contiguous(),
        theta_harm=found.theta_harm[edited].contiguous(),
        theta=theta,
        tau=tau,
        diagnostics=_diagnostics(run, found, transport, choice, evaluation),
        quality="weak" if evaluation.reasons else "good",
        quality_reasons=evaluation.reasons,
        dropped=run.dropped,
    )


def _choose_layers(config: FitConfig, found: Directions, n_layers: int) -> LayerChoice:
    wanted: Any = config.layers
    if wanted is None:
        wanted = "all" if config.method == "transport" else min(DEFAULT_ALIGNEZ_LAYERS, n_layers)
    if isinstance(wanted, int):
        return select_layers(found, wanted, config.layer_rule)
    layers = tuple(range(n_layers)) if wanted == "all" else tuple(wanted)
    scores = tuple(float(s) for s in layer_scores(found, config.layer_rule))
    return LayerChoice(layers, scores, config.layer_rule)


def _transport_or_none(config: FitConfig, help_: Tensor, plain: Tensor) -> Transport | None:
    """Theta and tau; `alignez` keeps them too where they exist, but does not fail where they do not."""
    try:
        return fit_transport(help_, plain)
    except DegenerateEmbeddings:
        if config.method == "transport":
            raise
        return None


def _record(
    spec: FitSpec, sample: Sample, characteristics: dict[int, TextPair], responses: dict[int, TextPair]
) -> PreferencePair:
    text, answer = characteristics[sample.index], responses.get(sample.index)
    given = len(spec.queries) + len(spec.pairs)
    origin: Literal["query", "pair", "model"] = "query" if sample.index < len(spec.queries) else "pair"
    return PreferencePair(
        index=sample.index,
        query=sample.query,
        preferred=sample.persona.preferred,
        dispreferred=sample.persona.dispreferred,
        help_characteristics=text.help,
        harm_characteristics=text.harm,
        help_response=answer.help.strip() if answer else None,
        harm_response=answer.harm.strip() if answer else None,
        origin="model" if sample.index >= given else origin,
    )


def _diagnostics(
    run: FitRun, found: Directions, transport: Transport | None, choice: LayerChoice, evaluation: Evaluation
) -> dict[str, Any]:
    """What section 3.7 of the design asks for.

    Lists are per layer of the model, from layer 0, but `energy_transport` (of help − plain), which is per edited layer.
    """
    return {
        "layers": list(choice.layers),
        "layer_rule": choice.rule,
        "layer_scores": _rounded(choice.scores),
        "cosine_help_harm": _rounded(found.cosine.tolist()),
        "energy_help": _rounded(found.energy_help.tolist()),
        "energy_harm": _rounded(found.energy_harm.tolist()),
        "energy_transport": None if transport is None else _rounded(transport.energy.tolist()),
        "evaluation": evaluation.to_dict(),
        "dropped_pairs": len(run.dropped),
        "empty_texts": run.empty,
        "responses_without_room": len(run.no_room),
        "last_attempt": {
            "resumed_texts": run.resumed,
            "tokens_generated": run.tokens,
            "seconds": {stage: round(run.seconds[stage], 3) for stage in STAGES},
        },
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(v), 6) for v in values]
