"""`alignez up` makes an operator key once, shows it then, and afterwards says where it is stored."""

from __future__ import annotations

from pathlib import Path

from cli.commands.up import ready_text
from cli.config import RunInfo
from cli.local_stack.first_key import ensure_operator_key
from profiles.service import authenticate, revoke_key
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork


def test_the_key_is_made_once_and_again_when_it_no_longer_works(
    committed: SessionFactory, postgres_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "operator.key"
    assert ensure_operator_key(postgres_url, file) is True
    key = file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert ensure_operator_key(postgres_url, file) is False
    assert file.read_text() == key
    with UnitOfWork.open(committed, PLATFORM) as uow:
        caller = authenticate(uow, key.strip())
        assert caller.key_id is not None
        revoke_key(uow, caller.tenant_id, caller.key_id)
    assert ensure_operator_key(postgres_url, file) is True
    assert file.read_text() != key


def test_only_a_new_key_is_shown(tmp_path: Path) -> None:
    file = str(tmp_path / "operator.key")
    run = RunInfo("http://127.0.0.1:8000", file, "http://127.0.0.1:9100/metrics", {})
    first = ready_text(run, tmp_path, "persona-nano", "az_secret")
    assert f"az_secret   (shown only now; stored in {file})" in first
    later = ready_text(run, tmp_path, "persona-nano", None)
    assert "az_" not in later
    assert f"in {file}   (show it: cat {file})" in later
