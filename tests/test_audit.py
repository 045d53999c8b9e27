"""What `make audit` makes of pip-audit's report: a package that was not looked up is never an all-clear."""

from __future__ import annotations

from pathlib import Path

from requirements.audit import audit, judged, locks


def test_a_vulnerable_package_is_named_with_its_advisory_and_what_mends_it() -> None:
    vulnerable = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
    found, unknown, known = judged({"dependencies": [vulnerable, {"name": "b", "version": "1", "vulns": []}]})
    assert found == ["a 1: CVE-1, mended in 2"]
    assert (unknown, known) == ([], 2)


def test_a_package_that_the_service_does_not_know_is_not_counted_as_looked_up() -> None:
    found, unknown, known = judged({"dependencies": [{"name": "a", "skip_reason": "not found"}]})
    assert (found, unknown, known) == ([], ["a"], 0)


def test_an_audit_that_gets_no_report_fails(capsys) -> None:  # type: ignore[no-untyped-def]
    assert audit("/bin/false", [Path("cpu.txt")]) == 1
    assert "cpu.txt: NOT AUDITED" in capsys.readouterr().out


def test_every_lock_is_audited() -> None:
    assert {"cpu.txt", "serving.txt", "triton-server.txt", "audit.txt"} <= {path.name for path in locks()}
