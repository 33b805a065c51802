"""vLLM as an engine: requests with any number of different edits in one batch, by a plugin and without a fork.

Two halves, in different processes:

- beside vLLM's model (`plugin`, loaded by vLLM through the entry point `vllm.general_plugins`): `models` gives the
  model classes editable MLPs, `edited_mlp` holds the device tables and the edit, `runner_v1` and `runner_v2` tell every
  step which token carries which slot, `prefix_cache` keeps edited blocks apart, `worker_extension` loads plans;
- beside the application: `engine` (`VLLMEngine`, the `Engine` port), `launch` (how vLLM starts, `core_process` how its
  core ends), `outputs` and `captures` (what comes back), `slots` (which plan lives in which slot), `plan_loader` (how
  plans get there).

`row_edit` is what both halves say to each other about one request, `plan_message` about a plan. Only `plugin`,
`models`, `prefix_cache`, `runner_v1`, `runner_v2` and the second half import vllm, and they use private names of it: it
is pinned to 0.32.x, and `make test-vllm` holds it to the same contract as every other engine.
"""
