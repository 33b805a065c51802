"""These tests need the wheels of `.[helm]`: `make helm-check` installs them."""

from __future__ import annotations

from importlib.util import find_spec

# Tests are chosen by their marker after they were imported, which without the wheels fails.
_WHEELS = ("check_jsonschema", "helm_python", "kubernetes_validate", "promql_parser", "yaml")
collect_ignore_glob = [] if all(map(find_spec, _WHEELS)) else ["test_*.py"]
