"""The tables of what lighter trainings cost are those of the results file, and the record shows them."""

from __future__ import annotations

import json

from tests.finetune.efficiency import LATE, RESULTS, WAYS, tables

RECORD = RESULTS.parents[2] / "decisions" / "0012-schedules.md"


def test_the_decision_record_shows_the_tables_of_the_results_file() -> None:
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert record["ways"].keys() == WAYS.keys() and record["late"].keys() == {"in time", *LATE}
    assert "\n".join(tables(record)) in RECORD.read_text(encoding="utf-8")
