"""`TransformersEngine` in a process of its own: `engine` is the half that callers hold, `child` that with the model.

An event loop and a model in one interpreter take the interpreter's lock from each other at every operation that a step
dispatches: a server of 64 streams then costs the engine a quarter of its speed. vLLM keeps its engine apart for the
same reason. A crash of the model's process (out of memory, a driver) also leaves the server able to say so.
"""
