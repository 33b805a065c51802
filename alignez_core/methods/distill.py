"""`distill`: what a persona's prompt does to the residual stream, as a low-rank edit. Closed form, no gradient.

The model's own answers under the preferred persona are read under it (R_help), under its opposite (R_harm) and in the
plain context (r). In the plain pass, at each edited layer in turn and with the edits before it applied, the gap to the
target R_help + λ·(R_help − R_harm) is fitted from the block's MLP output x by ridge regression, truncated to rank r,
plus one row for the mean; the edit is applied and the pass goes on.

Source: ours (DESIGN section 3.4). Near it: Prompt Steering Replacement (arXiv 2605.03907), which is trained.

Shapes: T answer positions of all samples together, D hidden size, r rank (one row more holds the mean). All passes halt
after the same block, so memory does not grow with the layers: a pass over S tokens holds `pass_bytes`, in float32
D·(4 + 2·4) bytes a token. There are two passes for reading and one per form, at most `_MOST_BYTES` together. 28 answers
of 108 tokens with the nine forms of the grid on a 7B (D = 4096) take 149 MB a pass, 1.6 GB in all; beside them live one
batch's activations (4096 tokens, 0.3 GB) and the normal equations (5·D² float64, 0.7 GB).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import BlockPass, BlockStates, Engine, ScoreRequest, pass_bytes
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.base import Candidate, Material, Needs
from alignez_core.methods.low_rank import low_rank
from alignez_core.prompts import Side, persona_prompt
from alignez_core.self_preference import Sample
from alignez_core.spec.config import DEFAULT_RANK, DEFAULT_RIDGE, FitConfig
from alignez_core.spec.limits import MAX_RANK, ContrastForm, MethodName
from alignez_core.spec.samples import spread

#: Depths of the edited layers by default, as shares of the model's layers.
DEPTHS = (0.5, 0.6, 0.7, 0.8)
#: Forms that are fitted together; more cost memory, fewer read help and harm again.
_AT_ONCE = 12
#: Of all passes of one fit together; beyond, fewer answers are fitted on.
_MOST_BYTES = 6 << 30


@dataclass(frozen=True)
class Form:
    """One form of the edit.

    Args:
        contrast: λ. form: how R_help − R_harm enters. layers: edited, ascending. rank: r. ridge: in mean diagonals.
    """

    contrast: float
    form: ContrastForm
    layers: tuple[int, ...]
    rank: int = DEFAULT_RANK
    ridge: float = DEFAULT_RIDGE

    def name(self, n_layers: int) -> str:
        """For people: "4 layers, rank 3, λ 1.5, clipped"."""
        which = "all layers" if len(self.layers) == n_layers else f"{len(self.layers)} layers"
        kind = "" if self.form == "full" or not self.contrast else f", {self.form}"
        return f"{which}, rank {self.rank}, λ {self.contrast:g}{kind}"


class Distill:
    """The method behind `distill` and, with a grid of forms, `auto`."""

    def __init__(self, name: MethodName = "distill") -> None:
        self.name: MethodName = name

    def needs(self, config: FitConfig) -> Needs:
        return Needs(walks=True)

    def candidates(self, material: Material) -> list[Candidate]:
        n_layers = material.engine.info.n_layers
        forms = grid(material.config, n_layers)
        made: list[Candidate] = []
        chunks = [forms[i : i + _AT_ONCE] for i in range(0, len(forms), _AT_ONCE)]
        total = sum(len({layer for form in chunk for layer in form.layers}) for chunk in chunks) * material.groups
        done = 0
        for chunk in chunks:
            edits: list[list[EditPlan]] = [[] for _ in chunk]
            explained: list[dict[int, list[float]]] = [{} for _ in chunk]
            for group in range(material.groups):
                fits = fit_forms(material, group, chunk)
                for halted in fits.run():
                    done += halted
                    material.report(done, total)
                for i, fitted in enumerate(fits.fitted):
                    edits[i].append(fitted.plan(material.config))
                    for layer, share in fitted.explained.items():
                        explained[i].setdefault(layer, []).append(share)
            for i, form in enumerate(chunk):
                settings = {
                    "contrast": form.contrast, "contrast_form": form.form, "layers": list(form.layers),
                    "rank": form.rank, "ridge": form.ridge,
                }  # fmt: skip
                shares = {layer: sum(found) / len(found) for layer, found in explained[i].items()}
                made.append(Candidate(form.name(n_layers), "distill", settings, tuple(edits[i]), explained=shares))
        return made


def default_layers(n_layers: int) -> tuple[int, ...]:
    """The blocks at .5, .6, .7 and .8 of the depth."""
    return tuple(sorted({int(depth * n_layers) for depth in DEPTHS}))


def grid(config: FitConfig, n_layers: int) -> list[Form]:
    """The forms among which the choice is made; one where the settings leave nothing open.

    `auto` and an open λ: the four layers at λ 0 to 3, row by row, and the forms that hold repetition down at the λ
    where it sets in. `auto` with layers and rank left open adds the strong form, all layers at rank 7.
    """
    rank = DEFAULT_RANK if config.rank is None else config.rank
    ridge = DEFAULT_RIDGE if config.ridge is None else config.ridge
    if isinstance(config.layers, tuple):
        layers = config.layers
    elif config.layers == "all":
        layers = tuple(range(n_layers))
    elif config.layers is not None:
        step = n_layers / (config.layers + 1)
        layers = tuple(sorted({min(n_layers - 1, int(step * (i + 1))) for i in range(config.layers)}))
    else:
        layers = default_layers(n_layers)
    doses: list[tuple[float, ContrastForm]]
    if config.contrast is not None:
        doses = [(config.contrast, config.contrast_form or "full")]
    elif config.contrast_form is not None:
        doses = [(dose, config.contrast_form) for dose in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)]
    else:
        doses = [(dose, "full") for dose in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)]
        doses += [(2.0, "mean"), (2.0, "clipped")]
    forms = [Form(dose, form, layers, rank, ridge) for dose, form in doses]
    if config.method == "auto" and config.layers is None and config.rank is None:
        every = tuple(range(n_layers))
        dose, form = (1.0, "full") if len(doses) > 1 else doses[0]
        forms.append(Form(dose, form, every, MAX_RANK - 1, ridge))  # type: ignore[arg-type]
    return forms


@dataclass
class FittedForm:
    """The growing edit of one form, layer after layer."""

    form: Form
    tables: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    explained: dict[int, float] = field(default_factory=dict)

    def plan(self, config: FitConfig) -> EditPlan:
        """The compiled edit at strength 1."""
        u, v, c = (torch.stack(list(part)).float().cpu() for part in zip(*self.tables, strict=True))
        return EditPlan.low_rank(self.form.layers, u, v, c, steps=config.effective_steps)


class FormFits:
    """Several forms fitted in one walk through the blocks.

    Help and harm are read once for all of them, and forms that edit the same layers share their plain pass up to the
    first of these, where it forks.
    """

    def __init__(
        self,
        engine: Engine,
        fit: Sequence[Sample],
        probes: Sequence[Sample],
        answers: Mapping[int, str],
        forms: Sequence[Form],
    ) -> None:
        if not fit:
            raise DegenerateEmbeddings("no answers to fit on")
        rows, form = [*fit, *probes], engine.prompt_format
        texts = [answers[s.index] for s in rows]

        def read(side: Side) -> BlockPass:
            prompts = [persona_prompt(form, s.query, s.persona, side) for s in rows]
            return engine.walk([ScoreRequest(p, a) for p, a in zip(prompts, texts, strict=True)])

        self._help = read("help")
        self._harm = read("harm") if any(f.contrast for f in forms) else None
        self.fitted = [FittedForm(f) for f in forms]
        self._plain: list[tuple[BlockPass, list[FittedForm]]] = []
        for layers in dict.fromkeys(f.layers for f in forms):
            members = [fitted for fitted in self.fitted if fitted.form.layers == layers]
            plain = [ScoreRequest(form.wrap(s.query), a) for s, a in zip(rows, texts, strict=True)]
            self._plain.append((engine.walk(plain, copies=len(members)), members))
        self._known = sum(self._help.lengths[: len(fit)])  # positions that are fitted on; the rest are probes

    def run(self) -> Iterator[int]:
        """Goes through the blocks; yields the number of halts since the last yield, after each edited block."""
        layers = sorted({layer for f in self.fitted for layer in f.form.layers})
        try:
            for layer in layers:
                wanted = self._help.after(layer).r
                contrast = None if self._harm is None else wanted - self._harm.after(layer).r
                for plain, members in self._plain:
                    if layer in members[0].form.layers:
                        self._step(plain, members, layer, wanted, contrast)
                yield 1
        finally:
            for each in (self._help, self._harm, *(plain for plain, _ in self._plain)):
                if each is not None:
                    each.close()

    def _step(
        self, plain: BlockPass, members: Sequence[FittedForm], layer: int, wanted: Tensor, contrast: Tensor | None
    ) -> None:
        layers, at = members[0].form.layers, plain.after(layer)
        first = layer == layers[0]
        count = len(wanted)
        parts = [slice(0, count) if first else slice(i * count, (i + 1) * count) for i in range(len(members))]
        deltas = [
            self._fit(fitted, layer, BlockStates(at.x[part], at.r[part]), wanted, contrast, plain.site_scale)
            for fitted, part in zip(members, parts, strict=True)
        ]
        if layer == layers[-1]:
            plain.close()
            return
        if first:
            plain.fork()
        plain.add(torch.cat(deltas))

    def _fit(
        self, fitted: FittedForm, layer: int, at: BlockStates, help_: Tensor, contrast: Tensor | None, scale: float
    ) -> Tensor:
        form, known = fitted.form, self._known
        gap = help_ - at.r
        if contrast is not None and form.contrast:
            gap = gap + form.contrast * shaped(contrast, form.form, known)
        gap = gap / scale
        u, v, c = low_rank(at.x[:known], gap[:known], form.rank, form.ridge)
        fitted.tables.append((u, v, c))
        delta = (at.x @ u.T + c) @ v
        rest = gap[known:]
        if len(rest):
            total = float(rest.square().sum())
            left = float((rest - delta[known:]).square().sum())
            fitted.explained[layer] = 1.0 - left / total if total > 0 else 0.0
        return delta * scale


def fit_forms(material: Material, group: int, forms: Sequence[Form]) -> FormFits:
    """The walk that fits some forms on one group's samples."""
    samples = [s for s in material.samples if s.group == group and material.help.get(s.index)]
    samples = within_memory(material, samples, len(forms))
    probes = [s for s in material.probes if s.group == group and material.help.get(s.index)]
    return FormFits(material.engine, samples, probes, material.help, forms)


def within_memory(material: Material, samples: Sequence[Sample], forms: int) -> list[Sample]:
    """As many of the samples, evenly spread, as passes over them may hold: `_MOST_BYTES` with one pass a form."""
    engine, width = material.engine, material.engine.info.hidden_size
    tokens = sum(
        len(engine.tokenize(persona_prompt(engine.prompt_format, s.query, s.persona, "help")))
        + len(engine.tokenize(material.help[s.index]))
        for s in samples
    )
    needed = pass_bytes(tokens, width, 4) * (2 + forms)
    if needed <= _MOST_BYTES:
        return list(samples)
    return spread(samples, max(1, int(len(samples) * _MOST_BYTES / needed)))


def shaped(contrast: Tensor, form: ContrastForm, known: int) -> Tensor:
    """(T, D) the contrast as a form takes it: its rows, their mean, or the rows clipped at their median norm.

    Args:
        known: the first rows, those that are fitted on, decide mean and median.
    """
    if form == "mean":
        return contrast[:known].mean(0).expand_as(contrast)
    if form == "clipped":
        norm = torch.linalg.vector_norm(contrast, dim=1, keepdim=True)
        clipped: Tensor = contrast * (norm[:known].median() / norm.clamp_min(1e-12)).clamp_max(1.0)
        return clipped
    return contrast
