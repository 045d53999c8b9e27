"""Measurements of a plan that survive an interruption: a JSON beside the bundle, written whole or not at all.

A lap is found again under the machine's fingerprint, the checksum of the graph and the setup, and within those under
what was asked: which search and round, how many texts of which sample. A round counts only if all its setups are there:
figures of different hours are not laid side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.folder import write_atomic
from bundle.manifest import Machine, Manifest, Setup
from export.traffic import Lap

SCHEMA = "slipway.laps/1"


def digest(value: object) -> str:
    """A short checksum of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Kept:
    """The laps of one machine and sample.

    Args:
        file: is read if it is there; one that is broken is measured anew.
        forget: the search for which what is there for this machine is left aside; what the same search has measured
            since it was to do so, and was interrupted, stays. Empty: nothing is left aside.
    """

    def __init__(self, file: Path, machine: Machine, manifest: Manifest, sample: str, *, forget: str = "") -> None:
        self.file, self._manifest, self._sample = file, manifest, sample
        try:
            self._all: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._all = {}
        if not isinstance(self._all, dict) or self._all.get("schema") != SCHEMA:
            self._all = {"schema": SCHEMA, "machines": {}}
        # Its memory as well: a smaller machine of the same kind may swap.
        known = machine.model_dump(mode="json")
        machines = self._all["machines"]
        if forget and machines.get(digest(known), {}).get("unfinished") != forget:
            machines.pop(digest(known), None)
        self._here = machines.setdefault(digest(known), {"machine": known, "forms": {}, "sizes": {}})
        if forget:
            self._here["unfinished"] = forget

    @property
    def unfinished(self) -> str:
        """The search that measures anew what was known and has not come to its end; empty where there is none."""
        return str(self._here.get("unfinished", ""))

    def finish(self, search: str) -> None:
        """Says that a search has come to its end."""
        if self.unfinished == search:
            del self._here["unfinished"]
            self._write()

    def size(self, name: str) -> int | None:
        """The number of texts in a lap that was settled for a stage of a search."""
        value = self._here["sizes"].get(f"{self._sample}/{name}")
        return value if isinstance(value, int) else None

    def settle(self, name: str, size: int) -> None:
        """Keeps the number of texts in a lap, so that a resumed search measures the same."""
        self._here["sizes"][f"{self._sample}/{name}"] = size
        self._write()

    def proof(self, name: str) -> str | None:
        """Why a form may not race on a runtime, empty where it may; None where that is not known yet."""
        value = self._here.get("proofs", {}).get(name)
        return value if isinstance(value, str) else None

    def settle_proof(self, name: str, reason: str) -> None:
        """Keeps what was found: with the gate it can take as long as the search."""
        self._here.setdefault("proofs", {})[name] = reason
        self._write()

    def laps(self, name: str, setups: Sequence[Setup]) -> dict[Setup, Lap] | None:
        """A whole round, or None."""
        found = {}
        for setup in setups:
            known = self._place(setup).get(f"{self._sample}/{name}")
            if not isinstance(known, dict):
                return None
            found[setup] = Lap(known["seconds"], tuple(known["ms"]))
        return found

    def keep(self, name: str, laps: Mapping[Setup, Lap]) -> dict[Setup, Lap]:
        """Adds a whole round, writes the file, and returns the round as it will be read again (rounded)."""
        rounded = {
            setup: Lap(round(lap.seconds, 6), tuple(round(value, 3) for value in lap.latencies))
            for setup, lap in laps.items()
        }
        for setup, lap in rounded.items():
            self._place(setup)[f"{self._sample}/{name}"] = {"seconds": lap.seconds, "ms": list(lap.latencies)}
        self._write()
        return rounded

    def _place(self, setup: Setup) -> dict[str, Any]:
        artifact = self._manifest.artifacts[setup.artifact]
        key = f"{setup.runtime}, {setup.sessions} sessions, {setup.threads} threads, {setup.windows} windows, " + (
            "by length" if setup.by_length else "padded"
        )
        form: dict[str, Any] = self._here["forms"].setdefault(artifact.identity, {})
        place: dict[str, Any] = form.setdefault(key, {})
        return place

    def _write(self) -> None:
        write_atomic(self.file, json.dumps(self._all, ensure_ascii=False, indent=1) + "\n")
