"""The layers of a headed model, by the names that recipes, records and reports use."""

from __future__ import annotations

from typing import Any


def place_of(name: str) -> str:
    """The layer of a parameter: ``embeddings``, ``layer.0`` (the lowest) …, ``pooler``, or ``head``."""
    if name.startswith(("classifier", "token_classifier")):
        return "head"
    parts = name.partition(".")[2].split(".")
    return f"layer.{parts[2]}" if parts[0] == "encoder" else parts[0]


def by_layer(model: Any) -> dict[str, list[Any]]:
    """A model's parameters by layer, from below: ``embeddings``, ``layer.0`` …, ``pooler``, ``head``."""
    layers: dict[str, list[Any]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(place_of(name), []).append(parameter)
    return layers
