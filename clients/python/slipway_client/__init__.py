"""A typed client of a Slipway gateway: predictions, streams and the models behind them.

Speaks the native routes over httpx and knows nothing else of the project; what the fields mean is in `docs/api.md`.
"""

from slipway_client.answers import (
    Answer,
    Entity,
    FiredRule,
    GivenLabel,
    LabelScore,
    Line,
    Model,
    OffsetUnit,
    Pair,
    Prediction,
    Problem,
    StreamAnswer,
    Timing,
    Window,
    WindowScore,
)
from slipway_client.client import AsyncClient, Client
from slipway_client.errors import ClientError, Refused, Unreachable
from slipway_client.retries import Retries

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "Entity",
    "FiredRule",
    "GivenLabel",
    "LabelScore",
    "Line",
    "Model",
    "OffsetUnit",
    "Pair",
    "Prediction",
    "Problem",
    "Refused",
    "Retries",
    "StreamAnswer",
    "Timing",
    "Unreachable",
    "Window",
    "WindowScore",
]
