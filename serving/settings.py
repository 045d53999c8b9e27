"""Every setting of the gateway, each a sentence with its unit. The environment is read here and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bundle.batching import PARALLEL_CALLS

# An origin as a browser writes it in its header; "*" is none, so that nothing is opened to every page there is.
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


class Settings(BaseSettings):
    """Settings of `python -m serving run`; each can be given as an option or as ``SLIPWAY_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="SLIPWAY_", extra="forbid", frozen=True, populate_by_name=True)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens the service to the network.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one and prints it.")
    engine: Literal["triton", "onnx"] = Field(
        "triton", description="triton: a Triton server, supervised here or elsewhere; onnx: ONNX Runtime in-process."
    )
    bundles: Path = Field(
        Path("artifacts"),
        description="Folder whose bundles are served: <name>/bundle, <name>/versions/<number>, or <name> itself.",
    )
    rules: Path = Field(
        Path("rules"), description="Folder of rule files, <model>.toml, that act after the model; read again on change."
    )
    triton_url: str = Field(
        "",
        description="host:port of the gRPC endpoint of a Triton elsewhere, or of several with commas between them; "
        "empty starts and supervises one here.",
        validation_alias=AliasChoices("triton_url", "SLIPWAY_TRITON_URL", "TRITON_URL"),
    )
    model_repository: Path = Field(
        Path("model_repository"),
        description="Folder that `make export` wrote for the Triton that is started here.",
    )
    triton_cache_mib: int = Field(
        0,
        ge=0,
        description="MiB of the response cache of the Triton started here, for models exported with --response-cache; "
        "0: none.",
    )
    default_model: str = Field(
        "", description="Model that routes without a name in them ask (/predict, POST /); empty: the only one served."
    )
    grpc_port: int = Field(
        0, ge=0, le=65535, description="TCP port of the gRPC side of the Open Inference Protocol; 0 leaves it off."
    )
    keys_file: str = Field(
        "", description="TOML file of API keys (SHA-256 each); read again on change. Empty: predictions are open."
    )
    user_key_sha256: str = Field(
        "", description="SHA-256 (hex) of a key that predictions need; another way than the file."
    )
    admin_key_sha256: str = Field(
        "", description="SHA-256 (hex) of a key for the admin routes, which are off (403) without one."
    )
    versions_file: str = Field(
        "", description="File that keeps which versions were promoted; empty: versions.json in the folder of bundles."
    )
    log_folder: Path = Field(Path("artifacts/logs"), description="Folder for the log of the supervised Triton.")
    log_format: Literal["text", "json"] = Field(
        "text", description="text: lines for people; json: one object a line, with request and trace id."
    )
    log_requests: bool = Field(False, description="Whether each request is logged: route, status, times, windows.")
    log_texts: bool = Field(
        False,
        description="Whether logged requests show their texts; else no text is ever logged.",
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Base URL of an OTLP receiver (HTTP) that gets a trace of each request; empty sends none. "
        "Needs the extra `tracing`.",
        validation_alias=AliasChoices("otlp_endpoint", "SLIPWAY_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    trace_share: float = Field(
        1.0, ge=0, le=1, description="Share of requests that are traced where the caller's traceparent does not say."
    )
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body in bytes; beyond it 413.")
    max_texts: int = Field(64, ge=1, description="Most texts in one request; beyond it 413.")
    max_windows: int = Field(
        0, ge=0, description="Windows of one text; beyond it 413. 0 takes each bundle's own limit."
    )
    max_connections: int = Field(
        512, ge=1, description="Most connections open at a time; a further one gets 503 with Retry-After and is closed."
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1024, description="Largest request line with headers, in bytes; beyond it 431."
    )
    header_seconds: float = Field(
        10.0, gt=0, description="Seconds in which a request's line and headers must arrive; beyond it 408."
    )
    body_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds in which a request's body must arrive; beyond it 408. A stream has no end to keep.",
    )
    stall_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds that a stream's body, or the reading of an answer, may stand still; then it is cut off.",
    )
    keep_alive_seconds: int = Field(
        75, ge=1, description="Seconds for which an idle connection is kept for the caller's next request."
    )
    cors_origins: str = Field(
        "",
        description="Origins whose web pages may ask the API, with commas, such as https://app.example; empty: none.",
    )
    max_request_tokens: int = Field(
        262144, ge=1, description="Most tokens in the windows of one request, overlaps counted; beyond it 413."
    )
    max_pending_tokens: int = Field(
        131072,
        ge=2,
        description="Tokens of work at which a model lets nobody else in: 429 with Retry-After. "
        "The last one let in may go beyond.",
    )
    timeout_seconds: float = Field(
        30.0, gt=0, description="Seconds that one request may take, unless X-Request-Timeout-Ms says; beyond it 504."
    )
    max_timeout_seconds: float = Field(
        60.0, gt=0, description="Most seconds that X-Request-Timeout-Ms can ask for; more is cut down to it."
    )
    aim: Literal["throughput", "latency", "none"] = Field(
        "throughput", description="What a bundle's plan is followed for; none leaves plans aside."
    )
    device: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="What models run on. gpu: with engine onnx TensorRT or CUDA through onnxruntime-gpu, refused where "
        "that is missing; of a Triton its files say so. Plans, which are a processor's, are then left aside.",
    )
    tensorrt_cache: Path = Field(
        Path("artifacts/tensorrt"),
        description="Folder for what TensorRT builds for a graph, which takes it minutes (device gpu, engine onnx).",
    )
    threads: int = Field(
        0, ge=0, description="Threads (intra-op) of one model, shared by its sessions; 0: as planned, or all cores."
    )
    sessions: int = Field(
        0, ge=0, description="Computations of one model at the same time (engine onnx); 0: as planned, or 1."
    )
    batch_tokens: int = Field(
        0, ge=0, description="Padded tokens in one engine call, which a request's windows fill; 0: as planned, or 2048."
    )
    parallel_calls: int = Field(
        PARALLEL_CALLS, ge=1, description="Engine calls that one request may have under way at a time."
    )
    hang_seconds: float = Field(
        10.0,
        gt=0,
        description="Seconds that a silent Triton is waited for; then its calls are asked again elsewhere, and one "
        "started here is started anew.",
    )
    recover_seconds: float = Field(
        15.0,
        ge=0,
        description="Seconds that a request which was let in waits for a Triton to come back, to be asked again once; "
        "beyond it 503.",
    )
    engine_tokens: int = Field(
        0,
        ge=0,
        description="Tokens of a model at the engine at a time, others wait in turn; 0: as its computations need.",
    )
    cache_bytes: int = Field(
        0, ge=0, description="Bytes of the cache of what models said, least recently used first out; 0 leaves it off."
    )
    start_seconds: float = Field(120.0, gt=0, description="Seconds that an engine may take to become ready.")
    drain_seconds: float = Field(
        2.0,
        ge=0,
        description="Seconds of serving on after SIGTERM, with /health/ready at 503, before the port is closed; Ctrl-C "
        "closes it at once.",
    )
    stop_seconds: float = Field(
        30.0, gt=0, description="Seconds that requests in flight may take after the port was closed."
    )

    @property
    def triton_urls(self) -> list[str]:
        """The endpoints in ``triton_url``, without what may stand around them."""
        return [url for part in self.triton_url.split(",") if (url := part.strip().removeprefix("grpc://"))]

    @field_validator("triton_url")
    @classmethod
    def _endpoints(cls, value: str) -> str:
        urls = [part.strip().removeprefix("grpc://") for part in value.split(",")] if value.strip() else []
        for url in urls:
            host, _, port = url.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
                raise ValueError(f"{url!r} is not host:port")
            if urls.count(url) > 1:
                raise ValueError(f"{url} is named twice")
        return value.strip()

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in _listed(value):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; name each as scheme://host or scheme://host:port")
        return value

    @property
    def origins(self) -> list[str]:
        """``cors_origins``, one by one."""
        return _listed(self.cors_origins)

    @property
    def most_seconds(self) -> float:
        """Seconds that no request may pass, whatever it asks for."""
        return max(self.timeout_seconds, self.max_timeout_seconds)


def _listed(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]
