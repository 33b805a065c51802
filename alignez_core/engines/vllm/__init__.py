"""vLLM as an engine: requests with any number of different edits in one batch, by a plugin and without a fork.

Two halves, in different processes:

- in vLLM's process (`plugin`, loaded by vLLM through the entry point `vllm.general_plugins`; `device/`): `models` gives
  the model classes editable MLPs, `edited_mlp` holds the device tables and the edit, `runner_v1` and `runner_v2` tell
  every step which token uses which slot, `prefix_cache` separates edited blocks, `worker_extension` loads plans;
- in the application: `engine` (`VLLMEngine`, the `Engine` port), `launch` (starts vLLM; `core_process` ends its core),
  `outputs` and `captures` (results), `plans.slots` (which plan is in which slot), `plans.loader` (moves plans there).

`device.row_edit` is the message about one request, `plans.message` that about a plan. Only `plugin`, parts of
`device` and the second half import vllm. They use private names of it, so it is pinned to 0.32.x, and `make test-vllm`
runs the contract of all engines on it.
"""
