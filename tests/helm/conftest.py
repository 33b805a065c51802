"""These tests need the wheels of `.[helm]`: `make helm-check` installs them."""

from __future__ import annotations

from importlib.util import find_spec

# Tests are chosen by their marker after they were imported, which without the wheels fails.
collect_ignore_glob = [] if find_spec("helm_python") and find_spec("kubernetes_validate") else ["test_*.py"]
