"""Looks up every locked package for known vulnerabilities: `make audit`, with the pip-audit of requirements/audit.txt.

Exit status 0 only where every package of every lock was looked up and none is known to be vulnerable. An advisory
service that cannot be reached, or that does not know a package, is said and is a failure: silence is no all-clear.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# The services that pip-audit can ask; the second one where the first gives no answer.
SERVICES = ("pypi", "osv")


def locks() -> list[Path]:
    """Every lock of the project, the one of this very tool included."""
    return sorted(HERE.glob("*.txt"))


def judged(report: Mapping[str, Any]) -> tuple[list[str], list[str], int]:
    """What pip-audit's JSON says: vulnerabilities, packages that were not looked up, and how many were."""
    found: list[str] = []
    unknown: list[str] = []
    known = 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
            continue
        known += 1
        for advisory in package["vulns"]:
            mended = ", ".join(advisory["fix_versions"]) or "no version yet"
            found.append(f"{package['name']} {package['version']}: {advisory['id']}, mended in {mended}")
    return found, unknown, known


def asked(program: str, lock: Path, service: str) -> tuple[Mapping[str, Any] | None, str]:
    """pip-audit's report on a lock, or None and why there is none."""
    command = [program, "--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json"]
    run = subprocess.run(
        [*command, "--vulnerability-service", service, "-r", str(lock)], capture_output=True, text=True
    )
    try:
        report: Mapping[str, Any] = json.loads(run.stdout)
    except json.JSONDecodeError:
        return None, (run.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
    return report, ""


def audit(program: str, files: Sequence[Path]) -> int:
    """Prints what is known of each lock; returns the exit status."""
    status = 0
    for lock in files:
        reasons = []
        for service in SERVICES:
            report, reason = asked(program, lock, service)
            found, unknown, known = judged(report) if report else ([], [], 0)
            if known:
                break
            reasons.append(f"{service}: {reason or f'knows none of the {len(unknown)} packages'}")
        for line in found:
            print(f"{lock.name}: VULNERABLE {line}")
        if not known:
            print(f"{lock.name}: NOT AUDITED, no advisory service could be asked ({'; '.join(reasons)})")
        elif unknown:
            print(f"{lock.name}: NOT AUDITED {', '.join(unknown)}: unknown to the advisory service")
        if known:
            print(f"{lock.name}: {known} packages looked up, {len(found)} known vulnerabilities")
        if found or unknown or not known:
            status = 1
    return status


def main() -> None:
    status = audit(str(Path(sys.executable).with_name("pip-audit")), locks())
    if status:
        sys.exit("error: the audit is not clean; see the lines above")


if __name__ == "__main__":
    main()
