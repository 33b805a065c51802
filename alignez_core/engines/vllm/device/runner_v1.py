"""Tells the edited MLPs about each step of vLLM's first model runner (the one for CPUs).

vLLM has no hook here, so two methods of the runner are wrapped; both act only on models of `models.EditableModel`.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context

from alignez_core.engines.vllm.device.edited_mlp import StepState
from alignez_core.engines.vllm.device.row_edit import RowCapture, RowEdit, capture_of, edit_of

_MARK = "_alignez_wrapped"
_ASKED = "_alignez_asked"


def install(runner_class: type) -> None:
    """Wraps `_prepare_inputs` and `_model_forward`. Safe to call twice."""
    if getattr(runner_class, _MARK, False):
        return
    setattr(runner_class, _MARK, True)
    prepare, forward = runner_class._prepare_inputs, runner_class._model_forward  # type: ignore[attr-defined]

    @functools.wraps(prepare)
    def prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = prepare(self, scheduler_output, num_scheduled_tokens)
        step = _step_of(self)
        if step is not None:
            batch = self.input_batch
            asked = [_asked(self.requests[req_id]) for req_id in batch.req_ids]
            computed = batch.num_computed_tokens_cpu[: batch.num_reqs].tolist()
            step.begin([edit for edit, _ in asked], [capture for _, capture in asked], computed, num_scheduled_tokens)
        return result

    @functools.wraps(forward)
    def model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        step = _step_of(self)
        if step is not None and step.captures:
            # A compiled graph has no place to hand outputs out; such a step, a prefill, runs as plain Python.
            context = get_forward_context()
            context.skip_compiled = True
            context.cudagraph_runtime_mode = CUDAGraphMode.NONE
        return forward(self, *args, **kwargs)

    runner_class._prepare_inputs = prepare_inputs  # type: ignore[attr-defined]
    runner_class._model_forward = model_forward  # type: ignore[attr-defined]


def _asked(state: Any) -> tuple[RowEdit | None, RowCapture | None]:
    """The edit of a request, read once and kept on vLLM's state of it, because it takes part in many steps."""
    found: tuple[RowEdit | None, RowCapture | None] | None = getattr(state, _ASKED, None)
    if found is None:
        extra = None if state.sampling_params is None else state.sampling_params.extra_args
        found = edit_of(extra), capture_of(extra)
        setattr(state, _ASKED, found)
    return found


def _step_of(runner: Any) -> StepState | None:
    step: StepState | None = getattr(runner.get_model(), "alignez", None)
    return step
