"""`TransformersEngine` in a child process: `engine` runs in the caller's process, `child` holds the model.

In one interpreter, the event loop and the model compete for the GIL, which costs a quarter of the throughput at 64
streams. vLLM separates its engine for the same reason. If the child crashes (out of memory, a driver), the server keeps
running and reports it.
"""
