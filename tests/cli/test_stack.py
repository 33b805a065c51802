"""What the one-machine stack refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import StackError
from cli.local_stack.stack import LocalStack


@pytest.mark.parametrize("variable", ["ALIGNEZ_API_TLS_CERT", "ALIGNEZ_WORKER_METRICS_TLS_KEY"])
def test_certificates_are_for_single_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/tls/file.pem")
    stack = LocalStack(tmp_path / "data", lambda line: None, "127.0.0.1", 0, None, 1)
    with pytest.raises(StackError, match=f"unset {variable}"):
        stack.start()
    assert not (tmp_path / "data").exists()
