"""Tells the edited MLPs about each step of vLLM's second model runner, by its own hook: a `ModelState`.

This runner is the default on GPUs. Not run yet: it needs Triton.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from alignez_core.engines.vllm.device.row_edit import RowCapture, RowEdit, capture_of, edit_of


class EditingModelState(DefaultModelState):
    """The default state, which also keeps each request's edit and sets up the step from it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._edits: dict[str, tuple[RowEdit | None, RowCapture | None]] = {}

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        extra = None if params is None else params.extra_args
        self._edits[new_req_data.req_id] = (edit_of(extra), capture_of(extra))

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self._edits.pop(req_id, None)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        step = getattr(self.model, "alignez", None)
        if step is not None:
            found = [self._edits.get(req_id, (None, None)) for req_id in input_batch.req_ids]
            step.begin(
                [edit for edit, _ in found],
                [capture for _, capture in found],
                input_batch.num_computed_tokens_np[: len(found)].tolist(),
                input_batch.num_scheduled_tokens[: len(found)].tolist(),
            )
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs
