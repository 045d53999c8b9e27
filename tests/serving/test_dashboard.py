"""The Grafana dashboard asks only for what a running gateway exports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.telemetry import Telemetry
from tests.serving.conftest import ROOT, Server

DASHBOARD = ROOT / "docs" / "grafana" / "slipway.json"
# What may stand between a metric's name and a bracket in the few functions that are used.
_WORDS = {"sum", "min", "rate", "increase", "by", "ignoring", "group_left", "histogram_quantile", "label_values", "le"}


def queries() -> list[str]:
    """Every query of the dashboard: of its panels, and of its variables."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return asked + [item["query"]["query"] for item in board["templating"]["list"] if item["type"] == "query"]


def asked_of(query: str) -> tuple[set[str], set[str]]:
    """The metrics of a query, and the labels that it selects or groups by."""
    selected = re.findall(r"\{([^}]*)\}", query)
    labels = {label for part in selected for label in re.findall(r"(\w+)\s*=~?\s*\"", part)}
    labels |= {
        label.strip() for part in re.findall(r"(?:by|ignoring) \(?([\w, ]+)\)?", query) for label in part.split(",")
    }
    if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", query):
        return {found[1]}, {found[2]}
    bare = re.sub(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"|(?:by|ignoring) \([^)]*\)', " ", query)
    return set(re.findall(r"[a-z_]*_[a-z_]+", bare)) - _WORDS, labels - {"le", ""}


def test_every_query_is_understood_by_this_test() -> None:
    assert asked_of('sum by (model) (rate(slipway_texts_total{model=~"$model", x="1"}[5m])) / 2') == (
        {"slipway_texts_total"},
        {"model", "x"},
    )
    assert len(queries()) > 25 and all(asked_of(query)[0] for query in queries())


@pytest.mark.slow
def test_every_metric_and_label_of_the_dashboard_is_exported(triton_server: Server) -> None:
    with httpx.Client(base_url=triton_server.url, timeout=60) as client:
        assert client.post("/v1/models/news/predict", json={"inputs": "好"}).status_code == 200
        assert client.post("/v1/models/news/predict", json={"inputs": ""}).status_code == 422
        families = {item.name: item for item in text_string_to_metric_families(client.get("/metrics").text)}
    names: dict[str, set[str]] = {}
    for family in families.values():
        # One that has counted nothing yet has no samples; what it will have stands in its definition.
        defined = getattr(Telemetry().registry._names_to_collectors.get(family.name), "_labelnames", ())
        for suffix in ("", "_total", "_sum", "_count", "_bucket"):
            names.setdefault(family.name + suffix, set()).update(defined)
        for sample in family.samples:
            names[sample.name] = names.get(sample.name, set()) | set(sample.labels)
    for query in queries():
        metrics, labels = asked_of(query)
        assert metrics <= names.keys(), query
        assert labels <= set().union(*(names[name] for name in metrics)), query


@pytest.mark.slow
def test_what_triton_counted_is_told(triton_server: Server) -> None:
    with httpx.Client(base_url=triton_server.url, timeout=60) as client:

        def told() -> dict[str, float]:
            lines = (line.rpartition(" ") for line in client.get("/metrics").text.splitlines())
            return {name: float(value) for name, _, value in lines if name.startswith("slipway_triton")}

        before = told()
        answer = client.post("/v1/models/news/predict", json={"inputs": ["好" * 100, "今天下雨。"]}).json()
        after = told()
    windows = 'slipway_triton_windows_total{model="news"}'
    assert after[windows] - before[windows] == sum(item["windows"] for item in answer["predictions"])
    for part in ("queue", "input", "compute", "output"):
        name = f'slipway_triton_seconds_total{{model="news",part="{part}"}}'
        assert after[name] > before[name]


def test_the_dashboard_has_no_address_and_no_credentials() -> None:
    text = Path(DASHBOARD).read_text(encoding="utf-8")
    assert "://" not in text and "password" not in text.lower()
    ids = [panel["id"] for panel in json.loads(text)["panels"]]
    assert len(ids) == len(set(ids))
