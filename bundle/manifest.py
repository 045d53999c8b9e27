"""``bundle.json`` as typed, frozen models: the one place that says what a bundle must tell.

Whatever stands here (label names, tensor names, maximum length, pooling) is never typed a second time elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from bundle.errors import ManifestInvalid

SCHEMA: Literal["slipway.bundle/1"] = "slipway.bundle/1"

TaskKind = Literal["single-label", "multi-label", "text-pair", "token-classification", "multi-task"]
Pooling = Literal["mean", "max", "first", "weighted", "lead", "logit-mean", "confidence", "learned"]
Stitching = Literal["context", "average"]
# How INT8 is made: what a recipe asks for and `export` does.
Scheme = Literal["auto", "static", "dynamic", "weights-8", "weights-4"]
Calibration = Literal["error", "min-max", "entropy", "percentile"]
WeightScales = Literal["column", "tensor"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
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
        weights: of the pooling ``learned``, one for each of `bundle.decode.FEATURES`.
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
    parity: Parity | None = None
    quality: Quality | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict, description="fused node counts, quantization, timings")


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

    @model_validator(mode="after")
    def _published_exists(self) -> Self:
        if self.published and self.published not in self.artifacts:
            raise ValueError(f"published artifact {self.published!r} is not among the artifacts")
        return self

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
