"""The numerics and the engines of decode-time personalization.

Free of web, queue, database and environment: everything that it needs comes as an argument. Modules are imported where
they are used (`from alignez_core.editing import EditPlan`), so that a process without an engine never loads torch.
"""
