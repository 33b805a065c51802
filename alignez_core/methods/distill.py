"""`distill`: a low-rank edit with the effect of the persona's prompt on the residual stream. Closed form, no gradient.

The model's answers under the preferred persona are read in three contexts: under this persona (R_help), under its
opposite (R_harm) and plain (r). The plain pass halts at each edited layer, with the edits of earlier layers applied.
There, ridge regression fits the gap to the target R_help + λ·(R_help − R_harm) from the MLP output x, truncated to rank
r plus one row for the mean; then the pass continues with this edit.

Source: ours (DESIGN section 3.4). Related: Prompt Steering Replacement (arXiv 2605.03907), which trains the edit.

Shapes: T answer positions of all samples, D hidden size, r rank without the row for the mean. All passes halt after the
same block, so memory does not grow with the number of layers: a pass over S tokens holds `pass_bytes`, D·(4 + 2·4)
bytes per token in float32. There are two passes for reading and one per form, together at most `_MOST_BYTES`. Example:
28 answers of 108 tokens with the 9 forms of the grid on a 7B model (D = 4096) take 149 MB per pass, 1.6 GB in total,
plus the activations of one batch (4096 tokens, 0.3 GB) and the normal equations (5·D² float64, 0.7 GB).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import BlockPass, BlockStates, Engine, ScoreRequest, pass_bytes
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.base import Candidate, Material, Needs, chosen_layers
from alignez_core.methods.low_rank import low_rank
from alignez_core.prompts import Side, persona_prompt
from alignez_core.spec.config import DEFAULT_RANK, DEFAULT_RIDGE, FitConfig
from alignez_core.spec.limits import MAX_RANK, ContrastForm, MethodName
from alignez_core.spec.samples import Sample, spread

#: Default layers as shares of the model's depth.
DEPTHS = (0.5, 0.6, 0.7, 0.8)
#: Memory limit of all passes of one walk; above it, the fit uses fewer answers.
_MOST_BYTES = 6 << 30


@dataclass(frozen=True)
class Form:
    """Parameters of an edit that `distill` fits.

    Args:
        contrast: λ.
        contrast_form: form in which R_help − R_harm enters the target.
        layers: edited layers, ascending.
        rank: r.
        ridge: penalty in units of the normal matrix's mean diagonal.
    """

    contrast: float
    contrast_form: ContrastForm
    layers: tuple[int, ...]
    rank: int = DEFAULT_RANK
    ridge: float = DEFAULT_RIDGE

    def name(self, n_layers: int) -> str:
        """Readable name, for example "4 layers, rank 3, λ 1.5, clipped"."""
        which = "all layers" if len(self.layers) == n_layers else f"{len(self.layers)} layers"
        kind = "" if self.contrast_form == "full" or not self.contrast else f", {self.contrast_form}"
        return f"{which}, rank {self.rank}, λ {self.contrast:g}{kind}"


class Distill:
    """The methods `distill` and, with a larger grid of forms, `auto`."""

    def __init__(self, name: MethodName = "distill") -> None:
        self.name: MethodName = name

    def needs(self, config: FitConfig) -> Needs:
        return Needs(walks=True)

    def candidates(self, material: Material) -> list[Candidate]:
        n_layers = material.engine.info.n_layers
        forms = grid(material.config, n_layers)
        total = len({layer for form in forms for layer in form.layers}) * material.groups
        done = 0
        by_group: list[list[FittedForm]] = []
        for group in range(material.groups):
            fits = fit_forms(material, group, forms)
            for halted in fits.run():
                done += halted
                material.report(done, total)
            by_group.append(fits.fitted)
        made = []
        for i, form in enumerate(forms):
            fitted = [group[i] for group in by_group]
            edits = tuple(each.plan(material.config) for each in fitted)
            measured = [each.explained for each in fitted if each.explained]
            explained = {
                layer: sum(shares[layer] for shares in measured) / len(measured) for layer in form.layers if measured
            }
            settings = {**asdict(form), "layers": list(form.layers)}
            made.append(Candidate(form.name(n_layers), "distill", settings, edits, explained=explained))
        return made


def default_layers(n_layers: int) -> tuple[int, ...]:
    """The blocks at .5, .6, .7 and .8 of the depth."""
    return tuple(sorted({int(depth * n_layers) for depth in DEPTHS}))


def grid(config: FitConfig, n_layers: int) -> list[Form]:
    """The forms to choose from; a single one if the settings define it.

    Without `contrast`: the form "full" at λ 0 to 3, and the forms "mean" and "clipped", which reduce repetition, at
    λ 2, where it begins. `auto` without `layers` and `rank` adds the strongest form, all layers at rank 7.
    """
    rank = DEFAULT_RANK if config.rank is None else config.rank
    ridge = DEFAULT_RIDGE if config.ridge is None else config.ridge
    layers = chosen_layers(config, n_layers, DEPTHS)
    doses: list[tuple[float, ContrastForm]]
    if config.contrast is not None:
        doses = [(config.contrast, config.contrast_form or "full")]
    else:
        doses = [(dose, config.contrast_form or "full") for dose in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)]
        if config.contrast_form is None:
            doses += [(2.0, "mean"), (2.0, "clipped")]
    forms = [Form(dose, form, layers, rank, ridge) for dose, form in doses]
    if config.method == "auto" and config.layers is None and config.rank is None:
        strong = replace(forms[0], layers=tuple(range(n_layers)), rank=MAX_RANK - 1)
        forms.append(replace(strong, contrast=1.0, contrast_form="full") if len(doses) > 1 else strong)
    return forms


@dataclass
class FittedForm:
    """The edit of one form, extended layer by layer."""

    form: Form
    tables: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    explained: dict[int, float] = field(default_factory=dict)

    def plan(self, config: FitConfig) -> EditPlan:
        """The edit of all fitted layers at strength 1."""
        u, v, c = (torch.stack(list(part)).float().cpu() for part in zip(*self.tables, strict=True))
        return EditPlan.low_rank(self.form.layers, u, v, c, steps=config.effective_steps)


class FormFits:
    """Fit of several forms in one walk through the blocks.

    All forms share the passes under help and harm. Forms that edit the same layers also share one plain pass, which
    forks at the first of these layers.
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
        self._known = sum(self._help.lengths[: len(fit)])  # positions to fit on; the others belong to probes

    def run(self) -> Iterator[int]:
        """Fits all layers in order; yields 1 after each edited block."""
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
            gap = gap + form.contrast * shaped(contrast, form.contrast_form, known)
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
    """The fit of some forms on the samples of one group."""
    samples = [s for s in material.samples if s.group == group and material.help.get(s.index)]
    samples = within_memory(material, samples, len(forms))
    probes = [s for s in material.probes if s.group == group and material.help.get(s.index)]
    return FormFits(material.engine, samples, probes, material.help, forms)


def within_memory(material: Material, samples: Sequence[Sample], forms: int) -> list[Sample]:
    """The samples, or an evenly spaced part of them, so that all passes together hold at most `_MOST_BYTES`."""
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
    """(T, D) contrast in one form: its rows, their mean, or its rows clipped at their median norm.

    Args:
        known: number of leading rows, those to fit on, that define mean and median.
    """
    if form == "mean":
        return contrast[:known].mean(0).expand_as(contrast)
    if form == "clipped":
        norm = torch.linalg.vector_norm(contrast, dim=1, keepdim=True)
        clipped: Tensor = contrast * (norm[:known].median() / norm.clamp_min(1e-12)).clamp_max(1.0)
        return clipped
    return contrast
