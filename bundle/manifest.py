"""``bundle.json`` as typed, frozen models: the one place that says what a bundle must tell.

Whatever stands here (label names, tensor names, maximum length, pooling) is never typed a second time elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from bundle.errors import ManifestInvalid

SCHEMA: Literal["slipway.bundle/1"] = "slipway.bundle/1"

TaskKind = Literal["single-label", "multi-label", "text-pair", "token-classification", "multi-task"]
Pooling = Literal["mean", "max", "first", "weighted", "lead", "logit-mean", "confidence", "telling", "learned"]
# The split of dev rows that training has set into long neutral text; only such a training teaches ``telling``.
LONG = "dev_long"
Stitching = Literal["context", "average"]
# How INT8 is made: what a recipe asks for and `export` does.
Scheme = Literal["auto", "static", "dynamic", "weights-8", "weights-4"]
Calibration = Literal["error", "min-max", "entropy", "percentile"]
WeightScales = Literal["column", "tensor"]
Vocabulary = Literal["all", "corpus"]
Embeddings = Literal["fp32", "fp16", "int8"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
Aim = Literal["throughput", "latency"]
# What computes a graph; Paddle Inference is only ever measured, as serving runs without Paddle.
Runtime = Literal["onnxruntime", "openvino", "paddle-inference"]
DType = Literal["int64", "int32", "float32", "float16"]


class Frozen(BaseModel):
    """Immutable, and an unknown key is an error rather than a surprise."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class FileRef(Frozen):
    """A file of the bundle: path relative to the bundle folder, sha256 in hex, size in bytes."""

    file: str
    sha256: str
    bytes: int


class Source(Frozen):
    """Where data or base weights came from, and under which licence they may be used."""

    name: str
    licence: str
    sha256: str = ""
    note: str = ""


class Provenance(Frozen):
    """How the bundle was made: enough to make it again."""

    recipe: str
    recipe_sha256: str
    form: str = "quick"
    commit: str
    created: str = Field(description="ISO 8601, UTC")
    seed: int
    data: Source
    base: Source
    architecture: str = Field(description="PaddleNLP class of the model, such as BertForSequenceClassification")
    packages: dict[str, str] = Field(description="versions of the packages that made it")


class Task(Frozen):
    """What the model answers.

    Attributes:
        labels: in the order of the last axis of the first output. For token classification it is the internal BIO
            scheme: ``O`` first, then ``B-X``, ``I-X`` for every entity type.
        thresholds: of a multi-label task, by label: the score from which a label is given; chosen on dev.
        token_labels: of a multi-task model, whose ``labels`` are those of its classification head: the internal BIO
            scheme of its tagging head, in the order of the last axis of the second output.
    """

    kind: TaskKind
    labels: tuple[str, ...] = Field(min_length=2)
    thresholds: tuple[float, ...] = ()
    token_labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        tags = self.tag_labels
        if tags != (bio_labels([label[2:] for label in tags[1::2]]) if self.tags else ()):
            raise ValueError("token labels must be O, B-X, I-X, B-Y, I-Y, …")
        if self.thresholds and (self.kind != "multi-label" or len(self.thresholds) != len(self.labels)):
            raise ValueError("thresholds are one number for each label of a multi-label task")
        return self

    @property
    def classifies(self) -> bool:
        """Whether an answer names labels of the whole text."""
        return self.kind != "token-classification"

    @property
    def tags(self) -> bool:
        """Whether an answer names entities."""
        return self.kind in ("token-classification", "multi-task")

    @property
    def tag_labels(self) -> tuple[str, ...]:
        """The internal BIO scheme of whatever tags; empty where nothing does."""
        return self.labels if self.kind == "token-classification" else self.token_labels

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The labels that a whole text can have; empty for a tagger."""
        return self.labels if self.classifies else ()

    @property
    def entity_types(self) -> tuple[str, ...]:
        """The entity types, in label order; empty where nothing is tagged."""
        return tuple(label[2:] for label in self.tag_labels[1::2])


def bio_labels(types: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The internal label list of a tagger: ``O`` and a B-/I- pair per entity type."""
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


class Joining(Frozen):
    """How the answers of a text's windows become one.

    Attributes:
        pooling: of a classifier's scores; see `bundle.decode.classify`.
        weights: of the pooling ``learned``, one for each of `bundle.decode.FEATURES`, and one for `LEVEL` where the
            model has learned that.
        stitching: of a tagger's logits; see `bundle.decode.stitch`.
    """

    pooling: Pooling = "mean"
    weights: tuple[float, ...] = ()
    stitching: Stitching = "context"


class TextSpec(Frozen):
    """How a text becomes windows of tokens, and how the windows' answers become one."""

    tokenizer: FileRef
    max_tokens: int = Field(ge=8, description="tokens in one window, special tokens included")
    overlap: int = Field(ge=0, description="tokens that two neighbouring windows share (Hugging Face: stride)")
    max_windows: int = Field(ge=1, description="windows of one text; beyond it a request is refused with 413")
    pooling: Pooling
    pooling_weights: tuple[float, ...] = Field(default=(), description="of the pooling learned; fitted on dev")
    stitching: Stitching = Field(default="context", description="how a tagger's windows are joined; chosen on dev")
    pad_id: int
    cls_id: int
    sep_id: int
    length_buckets: tuple[int, ...] = Field(description="token lengths that evaluation tables are cut by")

    @model_validator(mode="after")
    def _overlap_leaves_progress(self) -> Self:
        if self.overlap > (self.max_tokens - 3) // 2:
            raise ValueError(f"overlap {self.overlap} must be at most half of a window of {self.max_tokens} tokens")
        return self

    @property
    def joining(self) -> Joining:
        """How the windows' answers become one."""
        return Joining(pooling=self.pooling, weights=self.pooling_weights, stitching=self.stitching)


class Tensor(Frozen):
    """One tensor of the model: its name in every graph, its dtype, its axes (an int or the name of a free axis)."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


class Signature(Frozen):
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def signature_of(task: Task) -> Signature:
    """The tensors of every graph that answers a task; a multi-task model has two outputs from one forward pass."""
    free: tuple[int | str, ...] = ("windows", "tokens")
    inputs = tuple(Tensor(name=name, dtype="int64", shape=free) for name in ("input_ids", "token_type_ids"))
    shape = (*free, len(task.labels)) if not task.classifies else ("windows", len(task.labels))
    outputs = [Tensor(name="logits", dtype="float32", shape=shape)]
    if task.kind == "multi-task":
        outputs.append(Tensor(name="token_logits", dtype="float32", shape=(*free, len(task.token_labels))))
    return Signature(inputs=inputs, outputs=tuple(outputs))


class Parity(Frozen):
    """How far an artifact's logits are from those of the training framework, on the golden rows."""

    reference: str
    rows: int
    windows: int
    max_abs: float = Field(description="largest absolute difference of a logit")
    mean_abs: float
    label_agreement: float = Field(description="share of golden rows whose decoded answer is the same, 0 to 1")
    tolerance: float = Field(description="the bound on max_abs that was really applied, and that serving applies again")


class Quality(Frozen):
    """What an artifact scores on rows that it was not trained on."""

    split: Literal["dev", "test"]
    rows: int
    metrics: dict[str, float]
    agreement: float | None = Field(default=None, description="share of rows answered as the training framework does")


class Artifact(Frozen):
    """One form of the model: ``file`` is what a runtime opens, ``files`` are its companions (weights by a graph)."""

    file: str
    sha256: str
    bytes: int
    files: tuple[FileRef, ...] = ()
    format: Literal["paddle", "paddle-static", "onnx"]
    precision: Precision
    made_from: str = ""
    batch_invariant: bool = Field(
        default=True,
        description="whether a window's logits do not depend on what it is batched with; dynamic quantization's do",
    )
    runtime: Runtime | None = Field(default=None, description="the only runtime that it is meant for; None: any")
    parity: Parity | None = None
    quality: Quality | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict, description="fused node counts, quantization, timings")

    @property
    def identity(self) -> str:
        """One checksum over the file and its companions."""
        parts = [self.sha256, *(ref.sha256 for ref in self.files)]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


class Machine(Frozen):
    """What a plan was measured on.

    Attributes:
        cpu: model name of the processor.
        cores: that the process may use.
        isa: its instruction sets, of those that decide how fast a matrix product is.
        memory_gib: of the whole machine, for the reader; it does not decide whether a plan is foreign.
        versions: of Python and of the runtimes.
    """

    cpu: str
    cores: int = Field(ge=1)
    isa: tuple[str, ...]
    memory_gib: float
    versions: dict[str, str]


class Setup(Frozen):
    """One way to run a model on a machine.

    Attributes:
        runtime: what computes; of manifests from before there was a choice it is ONNX Runtime.
        artifact: name of the form that is run.
        threads: intra-op threads of each session; 0 where a runtime's own default was left as it is.
        sessions: computations at the same time.
        windows: most windows in one computation; windows of several requests may come together.
        by_length: whether windows of a computation are of like length, or padded as they come; of one window no matter.
    """

    runtime: Runtime = "onnxruntime"
    artifact: str
    threads: int = Field(ge=0)
    sessions: int = Field(ge=1)
    windows: int = Field(ge=1)
    by_length: bool = True

    def __str__(self) -> str:
        batch = "1 window" if self.windows == 1 else f"≤ {self.windows} windows"
        order = "" if self.windows == 1 else (", by length" if self.by_length else ", padded")
        on = {"onnxruntime": "", "openvino": " on OpenVINO", "paddle-inference": " on Paddle Inference"}[self.runtime]
        return f"{self.artifact}{on} {self.sessions}×{self.threads or 'default'}, {batch}{order}"


class Trial(Frozen):
    """What a setup did: alone with one request at a time, and under several clients that each wait for their answer.

    A request is a text of the dev split, already cut into windows; tokenizing and HTTP are not in these figures.
    Paddle Inference answers one text at a time, as more clients of one predictor would only wait: its figures of both
    kinds are of the same laps, beside the defaults under the clients.

    Attributes:
        p50_ms, p99_ms: of one request at a time; with fewer than 100 requests p99 is the slowest.
        speedup: how many times faster than the defaults the median request was in the same rounds (median of rounds).
        texts_per_second: under the clients, median of the rounds.
        loaded_p50_ms, loaded_p99_ms: of a request under the clients.
        throughput_ratio: throughput over that of the defaults in the same rounds (median of rounds).
        requests, loaded_requests: how many were timed.
        rounds, loaded_rounds: in how many rounds; a search drops the slow ones early.
    """

    setup: Setup
    p50_ms: float | None = None
    p99_ms: float | None = None
    speedup: float | None = None
    requests: int = 0
    rounds: int = 0
    texts_per_second: float | None = None
    loaded_p50_ms: float | None = None
    loaded_p99_ms: float | None = None
    throughput_ratio: float | None = None
    loaded_requests: int = 0
    loaded_rounds: int = 0


class Duel(Frozen):
    """The choice for throughput against another setup, round by round under the same clients.

    Attributes:
        ratio: the choice's texts/s over the other's, median of the rounds; ``lowest`` and ``highest`` of one round.
        requests: timed of each side.
    """

    against: Setup
    ratio: float
    lowest: float
    highest: float
    texts_per_second: float
    rounds: int
    requests: int


class Plan(Frozen):
    """How a model is best run on one machine, as `python -m export plan` measured it there.

    Attributes:
        artifacts: name → checksum of every form that was measured; another checksum makes the plan void.
        sample: texts of the dev split that stood for its length mix, evenly spaced by length.
        windows_per_text, tokens_per_text: means over the sample; tokens are those that the model reads.
        clients: that were under way at the same time where throughput was measured, each with one request.
        p99_limit_ms: bound on a request's p99 under the clients.
        warmup: requests of each setup before anything counts.
        load_before: cores that others kept busy before the first measurement (`bundle.machine.load`).
        latency: the setup with the lowest median of one request; throughput: the one with the most texts/s whose p99
            keeps the limit; defaults: one session, all threads, one window at a time.
        instead: by aim, the best setup that ONNX Runtime runs, where another runtime was chosen: for a server that
            does not have it.
        vs_defaults: throughput against the defaults, first of the same form (unless it is for one runtime alone), then
            of the published one, then of the graph as converted, then against `instead`, then against Paddle Inference,
            as far as they were there.
        table: every setup that was measured.
        left_out: why OpenVINO, or a form on it, was not among the candidates.
    """

    created: str = Field(description="ISO 8601, UTC")
    commit: str
    search: Literal["brief", "quick", "exhaustive"]
    machine: Machine
    artifacts: dict[str, str]
    dev_sha256: str
    sample: int
    windows_per_text: float
    tokens_per_text: float
    clients: int
    p99_limit_ms: float
    warmup: int
    load_before: float
    seconds: float
    latency: Setup
    throughput: Setup
    defaults: Setup
    instead: dict[Aim, Setup] = Field(default_factory=dict)
    vs_defaults: tuple[Duel, ...] = ()
    table: tuple[Trial, ...] = ()
    left_out: dict[str, str] = Field(default_factory=dict)

    def choice(self, aim: Aim) -> Setup:
        """The setup for an aim."""
        return self.latency if aim == "latency" else self.throughput

    def on_onnxruntime(self, aim: Aim) -> Setup:
        """What ONNX Runtime runs for an aim: the choice itself, or what stands in for it."""
        choice = self.choice(aim)
        return choice if choice.runtime == "onnxruntime" else self.instead.get(aim, self.defaults)


class Manifest(Frozen):
    """Everything that the other rooms know about a model."""

    schema_: Literal["slipway.bundle/1"] = Field(default=SCHEMA, alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    version: int = Field(default=1, ge=1)
    made: Provenance
    task: Task
    text: TextSpec
    signature: Signature
    scores: dict[str, dict[str, JsonValue]] = Field(default_factory=dict, description="dev, test, baseline …")
    golden: FileRef
    splits: dict[str, FileRef] = Field(
        default_factory=dict, description="dev, test, calibration (and dev_long) rows, JSONL"
    )
    artifacts: dict[str, Artifact] = Field(default_factory=dict)
    published: str = Field(default="", description="name of the artifact to serve; empty until export has passed")
    plan: Plan | None = Field(default=None, description="how to run it on the machine where it was measured")

    @model_validator(mode="after")
    def _published_exists(self) -> Self:
        if self.published and self.published not in self.artifacts:
            raise ValueError(f"published artifact {self.published!r} is not among the artifacts")
        return self

    @property
    def servable(self) -> tuple[str, ...]:
        """The artifacts that a plan may choose on ONNX Runtime: the published one, and proved ones in float32.

        The published one comes first; empty while nothing is published.
        """
        if not self.published:
            return ()
        exact = (
            name
            for name, item in self.artifacts.items()
            if item.format == "onnx" and item.precision == "fp32" and item.parity is not None
        )
        return tuple(dict.fromkeys((self.published, *exact)))

    def servable_on(self, runtime: Runtime) -> tuple[str, ...]:
        """The artifacts that a plan may choose on a runtime.

        Where the published one was written anew for the runtime, that form of it comes first, and in its place.
        """
        own = (
            name
            for name, item in self.artifacts.items()
            if item.runtime == runtime and item.made_from == self.published and item.parity is not None
        )
        instead = next(own, "") if self.published else ""
        return (instead, *self.servable[1:]) if instead else self.servable

    def without_stale_plan(self) -> Manifest:
        """The manifest, without a plan that measured other files than it names or chose what may not be served."""
        if self.plan is None:
            return self
        known = {name: item.identity for name, item in self.artifacts.items()}
        setups = (self.plan.latency, self.plan.throughput, *self.plan.instead.values())
        may = all(setup.artifact in self.servable_on(setup.runtime) for setup in setups)
        if may and self.plan.artifacts.items() <= known.items():
            return self
        return self.model_copy(update={"plan": None})

    def dumps(self) -> str:
        """The manifest as the text of ``bundle.json``."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), ensure_ascii=False, indent=2) + "\n"


def parse_manifest(text: str, file: str | Path = "bundle.json") -> Manifest:
    """Reads the text of a ``bundle.json``.

    Raises:
        ManifestInvalid: with the file and the first key that is wrong.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestInvalid(file, f"{where or 'document'}: {first['msg']}") from error
