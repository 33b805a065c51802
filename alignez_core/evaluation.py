"""Is a fit worth using? Measured on samples that the measured directions have not seen.

Three questions, asked of the model itself, without a judge:

* *separation*: do held-out pairs fall on the right side of directions fitted without them?
* *expressiveness*: does the persona, given as a prompt, change what the model says at all? Nats per token that the
  persona's prompt makes its own answers likelier than the bare prompt does. Near 0 means that the model does not know
  the behaviour, whatever the geometry looks like.
* *recovery*: which share of that does the edit reach on the bare prompt, with the directions that this query would get
  if it were not itself among the fit queries?

The paper leaves open "a metric that predicts whether a model can align itself"; expressiveness and recovery are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignez_core.directions import fit_directions, fit_transport, top_directions
from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, ScoreRequest
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.fit_config import FitConfig
from alignez_core.neighbors import nearest
from alignez_core.request_edit import conditional_plan, global_plan
from alignez_core.self_preference import Sample, TextPair, preference_prompt

FOLDS = 5
SCORED_PAIRS = 16

#: Below these a fit is "weak". Chosen on persona-nano between its 8 personas and made-up adjectives (see its README).
MIN_SEPARATION = 0.75
MIN_EXPRESSIVENESS = 0.05
MIN_RECOVERY = 0.25
#: Above this |cos(help, harm)| the paper's edit deletes what it amplifies (simulated in the method notes).
MAX_COSINE = 0.98


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate_fit`; None where there were too few samples to ask.

    Args:
        separation: share of held-out pairs (0 to 1), mean over edited layers; separation_by_layer: each.
        expressiveness: nats per token. recovery: share of it (1 = as good as the prompt; can be below 0 or above 1).
        harm_shift: nats per token that the edit makes the *dispreferred* answers likelier; should be below help's.
        help_shift: the same for the preferred answers.
        scored_pairs: how many pairs the last four rest on. unscored_pairs: too long for the context.
        reasons: why the fit is weak, empty when it is good.
    """

    separation: float | None
    separation_by_layer: tuple[float, ...]
    expressiveness: float | None
    recovery: float | None
    help_shift: float | None
    harm_shift: float | None
    scored_pairs: int
    unscored_pairs: int
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, rounded."""

        def short(value: float | None) -> float | None:
            return None if value is None else round(value, 4)

        return {
            "separation": short(self.separation),
            "separation_by_layer": [round(v, 4) for v in self.separation_by_layer],
            "expressiveness_nats_per_token": short(self.expressiveness),
            "recovery": short(self.recovery),
            "help_shift_nats_per_token": short(self.help_shift),
            "harm_shift_nats_per_token": short(self.harm_shift),
            "scored_pairs": self.scored_pairs,
            "unscored_pairs": self.unscored_pairs,
            "weak_because": list(self.reasons),
        }


def evaluate_fit(
    engine: Engine,
    config: FitConfig,
    layers: Sequence[int],
    samples: Sequence[Sample],
    characteristics: Mapping[int, TextPair],
    responses: Mapping[int, TextPair],
    embeddings: Tensor,
    help: Tensor,
    harm: Tensor,
    plain: Tensor,
    without_room: int = 0,
) -> Evaluation:
    """Separation by cross-fitting, expressiveness and recovery on up to `SCORED_PAIRS` pairs that fit the context.

    Args:
        samples: N, row i of the tensors belongs to samples[i].
        embeddings: (N, E). help, harm, plain: (N, L, D) at the L edited layers.
        without_room: pairs that could not even be made for want of context; they count as unscored.
    """
    by_layer = _separation(config, help, harm, plain)
    separation = sum(by_layer) / len(by_layer) if by_layer else None
    answered = [i for i, s in enumerate(samples) if _has_text(responses.get(s.index))]
    rows = [i for i in answered if _fits(engine, samples[i], characteristics, responses)]
    unscored = without_room + len(answered) - len(rows)
    rows = rows[:: max(1, len(rows) // SCORED_PAIRS)][:SCORED_PAIRS]
    expressiveness = help_shift = harm_shift = recovery = None
    if rows and len(samples) > 1:
        plans = [_held_out_plan(config, layers, i, embeddings, help, harm, plain) for i in rows]
        expressiveness, help_shift, harm_shift = _shifts(
            engine, [samples[i] for i in rows], plans, characteristics, responses
        )
        # A share of next to nothing would be noise.
        recovery = help_shift / expressiveness if expressiveness > 1e-3 else None
    cosine = fit_directions(help, harm).cosine if config.method == "alignez" else None
    return Evaluation(
        separation=separation,
        separation_by_layer=by_layer,
        expressiveness=expressiveness,
        recovery=recovery,
        help_shift=help_shift,
        harm_shift=harm_shift,
        scored_pairs=len(rows) if expressiveness is not None else 0,
        unscored_pairs=unscored,
        reasons=_reasons(separation, expressiveness, recovery, help_shift, harm_shift, cosine, unscored),
    )


def _separation(config: FitConfig, help: Tensor, harm: Tensor, plain: Tensor) -> tuple[float, ...]:
    """Per layer, the share of held-out pairs whose help row reaches further along the help direction than its harm row.

    Directions come from the other folds: of help − plain for transport, of help for alignez.
    """
    n = help.shape[0]
    if n < 2:
        return ()
    rows = help - plain if config.method == "transport" else help
    fold = torch.arange(n) % min(FOLDS, n)
    right = torch.zeros(help.shape[1])
    for held in range(int(fold.max()) + 1):
        try:
            theta, _ = top_directions(rows[fold != held].transpose(0, 1))
        except DegenerateEmbeddings:
            continue  # counts as not separated
        margin = torch.einsum("nld,ld->nl", (help - harm)[fold == held], theta)
        right += (margin > 0).float().sum(0)
    return tuple(float(v) for v in right / n)


def _held_out_plan(
    config: FitConfig, layers: Sequence[int], row: int, embeddings: Tensor, help: Tensor, harm: Tensor, plain: Tensor
) -> EditPlan:
    """The edit that sample `row`'s query would get if the sample were not in the fit; at full strength."""
    others = torch.tensor([i for i in range(len(embeddings)) if i != row])
    if config.conditional:
        k = min(config.neighbors, len(others))
        others = others[nearest(embeddings[row], embeddings[others], k)]
        return conditional_plan(config, layers, help[others], harm[others], plain[others], strength=1.0)
    if config.method == "transport":
        fitted = fit_transport(help[others], plain[others])
        return global_plan(config, layers, theta=fitted.theta, tau=fitted.tau, strength=1.0)
    found = fit_directions(help[others], harm[others])
    return global_plan(config, layers, theta_help=found.theta_help, theta_harm=found.theta_harm, strength=1.0)


def _shifts(
    engine: Engine,
    samples: Sequence[Sample],
    plans: Sequence[EditPlan],
    characteristics: Mapping[int, TextPair],
    responses: Mapping[int, TextPair],
) -> tuple[float, float, float]:
    """(expressiveness, help shift, harm shift), each nats per token, mean over samples."""
    requests: list[ScoreRequest] = []
    for sample, plan in zip(samples, plans, strict=True):
        bare = engine.prompt_format.wrap(sample.query)
        prompted = preference_prompt(engine, sample, characteristics[sample.index], "help")
        answer = responses[sample.index]
        requests += [
            ScoreRequest(prompted, answer.help),
            ScoreRequest(bare, answer.help),
            ScoreRequest(bare, answer.help, plan),
            ScoreRequest(bare, answer.harm),
            ScoreRequest(bare, answer.harm, plan),
        ]
    means = torch.stack([row.mean() for row in engine.score(requests)]).view(-1, 5)
    prompted, bare, edited, bare_harm, edited_harm = means.mean(0).tolist()
    return prompted - bare, edited - bare, edited_harm - bare_harm


def _reasons(
    separation: float | None,
    expressiveness: float | None,
    recovery: float | None,
    help_shift: float | None,
    harm_shift: float | None,
    cosine: Tensor | None,
    unscored: int,
) -> tuple[str, ...]:
    reasons = []
    if separation is None:
        reasons.append("a single sample cannot be held out, so nothing shows that the directions separate")
    elif separation < MIN_SEPARATION:
        reasons.append(
            f"the directions do not separate: {separation:.0%} of held-out pairs lie on the right side, "
            f"{MIN_SEPARATION:.0%} is the least"
        )
    if expressiveness is not None and expressiveness < MIN_EXPRESSIVENESS:
        reasons.append(
            f"the model hardly expresses this persona even when prompted: {expressiveness:.2f} nats per token more "
            f"than without it, {MIN_EXPRESSIVENESS:.2f} is the least; use words that the model knows, or another model"
        )
    elif recovery is not None and recovery < MIN_RECOVERY:
        reasons.append(
            f"the edit reaches {recovery:.0%} of what the persona reaches as a prompt, {MIN_RECOVERY:.0%} is the least"
        )
    elif help_shift is not None and harm_shift is not None and harm_shift >= help_shift:
        reasons.append("the edit favours the dispreferred answers as much as the preferred ones")
    if expressiveness is None and unscored:
        reasons.append(f"none of the {unscored} response pairs fits the context, so nothing shows what the edit does")
    if cosine is not None and float(cosine.min()) > MAX_COSINE:
        reasons.append(
            f"help and harm coincide in every edited layer (|cos| above {MAX_COSINE}), so the edit cancels itself"
        )
    return tuple(reasons)


def _fits(
    engine: Engine, sample: Sample, characteristics: Mapping[int, TextPair], responses: Mapping[int, TextPair]
) -> bool:
    """Whether the longest of the texts that `_shifts` scores fits the context."""
    prompt, answer = preference_prompt(engine, sample, characteristics[sample.index], "help"), responses[sample.index]
    bare = engine.prompt_format.wrap(sample.query)
    lengths = {text: len(engine.tokenize(text)) for text in (prompt, bare, answer.help, answer.harm)}
    longest = max(lengths[prompt] + lengths[answer.help], lengths[bare] + lengths[answer.harm])
    return longest <= engine.info.context_length


def _has_text(pair: TextPair | None) -> bool:
    return pair is not None and bool(pair.help) and bool(pair.harm)
