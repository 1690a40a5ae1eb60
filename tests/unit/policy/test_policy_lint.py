"""Lint and explain: the shipped directory is clean, and what is printed is what is enforced."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from supervisor.host import Host
from supervisor.policy.explain import explain, explain_json, landlock_view
from supervisor.policy.lint import compile_anywhere, exit_code, lint

TODAY = date(2026, 12, 1)
IDS = {
    "adapter.websocket", "adapter.rest", "executor.main", "model.practice", "service.egress",
    "service.ingress", "service.probe-loader", "service.probe-reader", "service.unlock",
    "service.swtpm",
}  # fmt: skip


@pytest.fixture
def copy(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "policies"))


def change(path: Path, old: str, new: str) -> int:
    """Replace and say on which line it was."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_the_shipped_policies_are_clean(shipped: Path) -> None:
    findings = lint(shipped, TODAY)
    assert findings == []
    assert exit_code(findings) == 0


def test_every_process_has_a_policy(shipped: Path, host: Host) -> None:
    plans, errors = compile_anywhere(shipped, host, TODAY)
    assert errors == []
    assert set(plans) == IDS


def test_an_overdue_review_is_a_warning(copy: Path) -> None:
    line = change(copy / "adapter-rest.toml", "2027-11-01", "2026-11-30")
    (finding,) = lint(copy, TODAY)
    error = finding.error
    assert (finding.severity, error.code, error.line) == ("warning", "review-overdue", line)
    assert exit_code([finding]) == 0


def test_an_expired_exception_is_an_error(copy: Path) -> None:
    old = 'id     = "null"\n'
    exception = 'exception = { owner = "o", ticket = "T-1", expires = 2026-11-30 }\n'
    line = change(copy / "adapter-rest.toml", old, old + exception) - 1
    (finding,) = lint(copy, TODAY)
    error = finding.error
    assert (finding.severity, error.code, error.line, error.rule) == (
        "error", "exception-expired", line, "null",
    )  # fmt: skip
    assert exit_code([finding]) == 1


def test_an_expired_waiver_is_an_error(copy: Path) -> None:
    old = 'guarantee = "cgroup:pids"\n'
    change(copy / "hosts" / "demo.toml", old, old + "expires   = 2026-11-30\n")
    assert [f.error.code for f in lint(copy, TODAY)] == ["waiver-expired"]


def test_a_missing_peer_is_an_error(copy: Path) -> None:
    (copy / "executor-main.toml").unlink()
    findings = lint(copy, TODAY)
    assert {f.error.code for f in findings} == {"unknown-peer"}
    assert {f.error.file for f in findings} == {"adapter-rest.toml", "adapter-websocket.toml"}


def test_broken_files_of_every_kind_are_found_together(copy: Path) -> None:
    change(copy / "adapter-rest.toml", "version   = 1", "version   = x")
    change(copy / "groups" / "fork.toml", "version = 1", "version = 0")
    change(copy / "hosts" / "demo.toml", 'mode = "auto"', 'mode = "maybe"')
    found = {(f.error.file, f.error.code) for f in lint(copy, TODAY)}
    assert {
        ("adapter-rest.toml", "not-toml"),
        ("fork.toml", "out-of-range"),
        ("demo.toml", "bad-value"),
    } <= found


def test_lint_without_a_host_file_says_what_it_could_not_check(copy: Path) -> None:
    shutil.rmtree(copy / "hosts")
    (finding,) = lint(copy, TODAY)
    assert (finding.severity, finding.error.code) == ("warning", "no-host-file")


def test_findings_are_plain_data(copy: Path) -> None:
    change(copy / "adapter-rest.toml", '"adapter"', '"demon"')
    findings = [json.loads(json.dumps(f.as_json())) for f in lint(copy, TODAY)]
    assert {"severity", "code", "file", "line", "field", "fix"} <= set(findings[0])


def test_explain_prints_every_rule_mount_and_call(shipped: Path, host: Host) -> None:
    plans, _ = compile_anywhere(shipped, host, TODAY)
    for plan in plans.values():
        text = explain(plan)
        for rule in plan.rules:
            assert f"{plan.policy.file}:{rule.line} {rule.id} " in text
        for rule in plan.sandbox.seccomp.main:
            assert f" {rule.call}" in text and rule.reason in text
        for path, _ in landlock_view(plan):
            assert path in text
        for name in plan.sandbox.fds:
            assert name in text


def test_explain_json_is_the_plan_and_has_no_token(shipped: Path, host: Host) -> None:
    plans, _ = compile_anywhere(shipped, host, TODAY)
    for plan in plans.values():
        text = json.dumps(explain_json(plan))
        assert "anchorhold-placeholder" not in text
        assert "anchorhold-placeholder" not in explain(plan)
        data = json.loads(text)
        assert len(data["sandbox"]["mounts"]) == len(plan.sandbox.mounts)
        assert len(data["sandbox"]["seccomp"]["main"]) == len(plan.sandbox.seccomp.main)
        assert data["digest"] == plan.digest
