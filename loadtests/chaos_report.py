"""Blows → figures, a verdict, and a table to read. Pure: what callers saw goes in.

What must hold: no wrong answer; no request without an answer, and none answered with anything but 200 or a refusal that
says when to come again; none that was let in and then given up, but where its engine died twice or the load was too
much on purpose; the server was ready again; a stop ends with 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loadtests.chaos import FLOODED, FULL, MODELS, STOPPED, SWAPPED, TWICE, Blow

SCHEMA = "slipway.chaos/1"
# A refusal of these kinds after so many seconds was none at the door: the request had been let in, and was given up.
LET_IN_SECONDS, GIVEN_UP = 1.5, ("engine-unavailable", "engine-timeout")
# Blows under which a request that was let in may be given up.
MAY_GIVE_UP = (TWICE, FLOODED)


def figures_of(blow: Blow) -> dict[str, Any]:
    """The figures of one blow; seconds count from the blow, or from its end where it lasts."""
    since = blow.over if blow.name in (FLOODED, TWICE) else blow.at
    again = blow.over if blow.name == TWICE else blow.at
    away = [time for time, ready in blow.ready if time >= blow.at and not ready]
    back = [time for time, ready in blow.ready if away and time > away[-1] and ready]
    right = [one for one in blow.outcomes if one.status == 200 and not one.fault]
    under_way = [one for one in blow.outcomes if one.start < blow.at <= one.end]
    refused = [one for one in blow.outcomes if one.refused]
    # Whoever comes after the port was closed is not let in; that is no fault of a server that stops.
    closed = [one for one in blow.outcomes if blow.name == STOPPED and one.fault == "connection refused"]
    faulty = [one for one in blow.outcomes if one.fault and one not in closed]
    after = [one.end for one in right if one.start >= since]
    return {
        "blow": blow.name,
        "requests": len(blow.outcomes),
        "right_answers": len(right),
        "refused": dict(sorted(Counter(str(one.status) for one in refused).items())),
        # Numbers differ from one sentence to the next.
        "reasons": dict(Counter(f"{one.status}: {re.sub('[0-9.]+', '…', one.said)}" for one in refused).most_common(5)),
        "port_closed": len(closed),
        "wrong_answers": sum(one.fault == "wrong answer" for one in faulty),
        "faults": dict(sorted(Counter(one.fault for one in faulty).items())),
        "given_up": sum(one.seconds > LET_IN_SECONDS and one.said.startswith(GIVEN_UP) for one in refused),
        "under_way": len(under_way),
        "under_way_answered": sum(one in right for one in under_way),
        "not_ready_after_s": _since(away[:1], blow.at),
        "ready_again_after_s": _since(back[:1], again),
        "not_ready": blow.not_ready,
        "answers_again_after_s": _since(after and [min(after)], since),
        "slowest_right_answer_s": round(max((one.seconds for one in right), default=0.0), 2),
        "recovered": blow.recovered,
        "notes": blow.notes,
    }


def _since(times: Sequence[float], begun: float) -> float | None:
    return round(times[0] - begun, 2) if times else None


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What should not have happened, a sentence each."""
    found = []
    for row in rows:
        name = row["blow"]
        if row["wrong_answers"]:
            found.append(f"{name}: {row['wrong_answers']} wrong answers")
        others = {fault: count for fault, count in row["faults"].items() if fault != "wrong answer"}
        if others:
            found.append(f"{name}: " + ", ".join(f"{count} × {fault}" for fault, count in others.items()))
        # A model and then its Triton: for what was asked again in between, the engine died twice.
        twice = name in MAY_GIVE_UP or (name == MODELS and row["notes"].get("triton_ended"))
        if row["given_up"] and not twice:
            found.append(f"{name}: {row['given_up']} requests were let in and given up")
        if not row["recovered"]:
            found.append(f"{name}: not ready again in time")
        if not row["right_answers"]:
            found.append(f"{name}: no request was answered")
        undone = [step for step, statuses in row["notes"].get("statuses", {}).items() if set(statuses) != {200}]
        if undone:
            found.append(f"{name}: refused: {', '.join(undone)}")
        if name == SWAPPED and row["refused"]:
            found.append(f"{name}: {sum(row['refused'].values())} requests were refused")
        if name in (STOPPED, FULL) and row["notes"].get("exit_status") != 0:
            found.append(f"{name}: it ended with {row['notes'].get('exit_status')}")
    return found


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    rows = record["blows"]
    lines = [
        "# Chaos",
        "",
        f"Printed by `make chaos`, {record['created'][:10]}, commit {record['commit']}, {record['hardware']['cpu']}, "
        f"{record['hardware']['cores']} cores (load {record['load_before']} before): model `{record['model']['name']}` "
        f"({record['model']['format']}), engine {record['engine']}, {record['users']} steady callers "
        f"and {record['newcomers_per_second']:g} newcomers a second, "
        f"{record['texts']} texts; the gateway answers {record['capacity_texts_per_second']} texts/s.",
        "",
        "| blow | requests | right | refused | wrong | lost or faulty | let in, given up | under way, answered | "
        "not ready after, s | ready again, s | answers again, s | slowest right, s |",
        "|---|---:|---:|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        refused = ", ".join(f"{count} × {status}" for status, count in row["refused"].items()) or "0"
        if row["port_closed"]:
            refused += f", {row['port_closed']} × port closed"
        faults = ", ".join(f"{n} × {fault}" for fault, n in row["faults"].items() if fault != "wrong answer") or "0"
        seconds = [row[key] for key in ("not_ready_after_s", "ready_again_after_s", "answers_again_after_s")]
        cells = [
            row["blow"],
            row["requests"],
            row["right_answers"],
            refused,
            row["wrong_answers"],
            faults,
            row["given_up"],
            f"{row['under_way_answered']} of {row['under_way']}",
            *("—" if value is None else value for value in seconds),
            row["slowest_right_answer_s"],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    flood = next((row["notes"] for row in rows if row["blow"] == FLOODED), None)
    lines += [
        "",
        "Every answer is compared with the one that the same text got before the first blow. A refusal is 429, 503 or "
        f"504 with `Retry-After`; one for the engine's sake after {LET_IN_SECONDS:g} s counts as let in and given up. "
        "Seconds count from the blow, the answers after the flood and all after the second kill from its end.",
    ]
    if flood:
        lines.append(
            f"The flood: {flood['texts_per_second_wanted']} texts/s wanted, {flood['texts_per_second_sent']} sent, "
            f"{flood['answered']} of its {flood['requests']} requests answered, {flood['refused']} refused."
        )
    if any(row["blow"] == MODELS and row["notes"].get("triton_ended") for row in rows):
        lines.append(
            "A killed model took its Triton along, which is Triton's own fault (its python backend trips over a lock "
            "that the dead model held); what was asked again in between met its second death."
        )
    verdict = record["failures"]
    lines += ["", "**Nothing happened that should not.**" if not verdict else "**What should not have happened:**"]
    lines += [f"- {sentence}" for sentence in verdict]
    return "\n".join(lines) + "\n"
