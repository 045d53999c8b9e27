"""A recipe: everything that decides a training run, in one TOML file.

A recipe has a quick form (what the file says) and may have a full form: the keys of its ``[full]`` table replace those
of the quick one. Unknown and wrong keys are errors that name the file, the key and what would be allowed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from bundle.decode import POOLINGS
from bundle.errors import RecipeError
from bundle.manifest import Calibration, Embeddings, Scheme, TaskKind, Vocabulary, WeightScales
from finetune.curve.settings import Curve
from finetune.search_settings import Search
from finetune.strict import Strict
from finetune.train_settings import LATER, Train

SHIPPED = Path(__file__).parent / "recipes"
Form = Literal["quick", "full"]


class Data(Strict):
    """Where the rows come from: a named dataset, or files of the user's own."""

    dataset: str | None = Field(
        default=None, description="a named dataset that pip brings, see `python -m finetune data`"
    )
    train: str | None = Field(default=None, description="file of rows; relative paths start at the recipe's folder")
    dev: str | float | int | None = Field(default=None, description="a file, a share of train, or a number of rows")
    test: str | float | int | None = Field(default=None, description="a file, a share of train, or a number of rows")
    format: Literal["csv", "tsv", "json", "jsonl", "conll"] | None = Field(
        default=None, description="default: by suffix"
    )
    encoding: str | None = Field(default=None, description="default: UTF-8, else GB18030")
    text: str | int = "text"
    label: str | int = "label"
    pair: str | int | None = None
    entities: str = "entities"
    separator: str = Field(
        default="|", min_length=1, description="what parts the labels of a multi-label row where they are one string"
    )
    on_bad_row: Literal["error", "skip"] = "error"
    rows: int | None = Field(default=None, ge=2, description="train on a stratified sample of this many rows")
    dev_rows: int | None = Field(default=None, ge=2, description="measure dev on a stratified sample of this many rows")
    test_rows: int | None = Field(
        default=None, ge=2, description="measure test on a stratified sample of this many rows"
    )

    join_share: float = Field(
        default=0.0, ge=0, le=1, description="share of a tagger's train rows that are joined to texts of a window"
    )
    neutral: str | None = Field(
        default=None, description="a named dataset, or a file of lines, whose text tells nothing of the labels"
    )
    neutral_share: float = Field(
        default=0.4, gt=0, le=1, description="share of the train rows that are set into such text"
    )
    neutral_end: float = Field(
        default=0.3, ge=0, le=1, description="share of these that stand at the end, as in the texts to be served"
    )
    neutral_telling: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of these of which a pass reads a window that tells the label; of the others any window, and "
        "most tell nothing",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.train is None):
            raise ValueError("give either `dataset` or `train`")
        return self


class Base(Strict):
    """The encoder to start from."""

    model: str = Field(description="a named pip asset, a local folder (Paddle or PyTorch weights) or a hub name")
    licence: str | None = Field(default=None, description="licence of the weights, where the source does not tell it")


def _known_pooling(value: str) -> str:
    if value != "auto" and value not in POOLINGS:
        raise ValueError(f"must be one of auto, {', '.join(POOLINGS)}")
    return value


class Text(Strict):
    """How a text becomes windows."""

    max_tokens: int = Field(default=256, ge=16, le=512, description="tokens in one window, [CLS] and [SEP] included")
    overlap: int = Field(default=32, ge=0, description="tokens that two neighbouring windows share")
    max_windows: int = Field(default=64, ge=1, description="windows of one text; a longer one is refused")
    pooling: Annotated[str, AfterValidator(_known_pooling)] = Field(
        default="auto", description="how windows' answers become one; auto takes what is best on dev"
    )
    length_buckets: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)


class Export(Strict):
    """What an INT8 graph may lose before it is not published."""

    max_drop: float = Field(default=0.01, ge=0, description="macro-F1 (taggers: F1) on dev, as a fraction")
    min_agreement: float = Field(default=0.99, ge=0, le=1, description="share of dev rows answered as before")
    max_shift: float = Field(default=0.02, ge=0, description="of the mean confidence, and rise of its error, on dev")
    max_noise: float = Field(default=0.15, ge=0, description="mean difference of a logit, as a share of their spread")
    scheme: Scheme = Field(default="auto", description="what becomes integer; auto takes the first that passes")
    calibration: Calibration = Field(default="error", description="how the range of an activation is chosen")
    weight_scales: WeightScales = Field(default="column", description="one scale per output column, or per weight")
    vocabulary: Vocabulary = Field(
        default="all", description="corpus leaves out embeddings of tokens that dev and calibration rows never have"
    )
    embeddings: Embeddings = Field(default="fp32", description="how the INT8 graph keeps its word table")


# Keys that came after the first bundles were made: at their default they leave a recipe's checksum as it was.
LATER_OF_EXPORT = ("vocabulary", "embeddings")
LATER_OF_DATA = ("neutral_telling",)


class Recipe(Strict):
    """One training run. See the classes above for each table's keys."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    summary: str
    expect: str = Field(default="", description="what the run should yield and how long it takes, in words")
    task: TaskKind
    data: Data
    base: Base
    text: Text = Text()
    train: Train = Train()
    curve: Curve = Curve()
    export: Export = Export()
    search: Search | None = Field(
        default=None, description="what `python -m finetune search` tries; trains nothing else"
    )

    @model_validator(mode="after")
    def _pairs_have_two_sides(self) -> Self:
        if self.task == "text-pair" and self.data.dataset is None and self.data.pair is None:
            raise ValueError("a text-pair recipe needs data.pair, the column or key of the second text")
        if self.task != "text-pair" and self.data.pair is not None:
            raise ValueError(f"data.pair is for text-pair recipes; a {self.task} recipe reads single texts")
        return self

    @model_validator(mode="after")
    def _late_gradients_are_left_alone(self) -> Self:
        if self.train.delay and self.curve.control == "on":
            raise ValueError('train.delay needs curve.control = "off" or "dry-run": no rollback reaches the past')
        return self

    @model_validator(mode="after")
    def _lessons_fit_the_task(self) -> Self:
        if self.data.join_share and self.task not in ("token-classification", "multi-task"):
            raise ValueError(f"data.join_share is for taggers; a {self.task} recipe has no entities to join")
        if self.data.neutral is not None and self.task != "single-label":
            raise ValueError(f"data.neutral is for single-label recipes, not for {self.task}")
        return self

    @property
    def metric(self) -> str:
        """The dev metric that decides which checkpoint is best."""
        usual = {"token-classification": "f1", "multi-task": "mean_f1"}
        return self.train.metric or usual.get(self.task, "macro_f1")

    def checksum(self) -> str:
        """sha256 of what decides the run, independent of comments, layout and the words that explain it.

        How closely the run is watched does not decide it, unless the watcher may interfere.
        """
        interferes = self.curve.control == "on" or self.train.unfreeze == "by-diagnosis"
        exclude = {"summary", "expect", "search"} | (set() if interferes else {"curve"})
        meaning = self.model_dump(mode="json", exclude=exclude)
        data = {key: Data.model_fields[key].default for key in LATER_OF_DATA}
        usual = {"data": data, "train": Train().model_dump(mode="json"), "export": Export().model_dump(mode="json")}
        for table, keys in (("data", LATER_OF_DATA), ("train", LATER), ("export", LATER_OF_EXPORT)):
            for key in keys:
                if meaning[table][key] == usual[table][key]:
                    del meaning[table][key]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def shipped() -> dict[str, Path]:
    """The recipes that ship, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def find(name_or_path: str) -> Path:
    """The file of a shipped recipe, or a path.

    Raises:
        RecipeError: neither.
    """
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    close = difflib.get_close_matches(name_or_path, known, 1)
    reason = "no such recipe or file" + (f"; did you mean {close[0]}?" if close else "")
    raise RecipeError(name_or_path, "", reason, list(known))


def load(name_or_path: str, form: Form = "quick") -> Recipe:
    """Reads a recipe in one of its forms. It is named by its file; the full form is named ``<file>-full``.

    Raises:
        RecipeError: unreadable, an unknown or wrong key, or no such form.
    """
    path = find(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(path, "", f"not a TOML file: {error}") from error
    full = table.pop("full", None)
    if form == "full":
        if not isinstance(full, dict):
            raise RecipeError(path, "full", "this recipe has no full form")
        table = _merged(table, full)
    if "name" in table:
        raise RecipeError(path, "name", "a recipe is named by its file; remove this key")
    table["name"] = path.stem if form == "quick" else f"{path.stem}-full"
    try:
        recipe = Recipe.model_validate(table)
        if isinstance(full, dict):  # a mistake in the other form is found now, not in a month
            Recipe.model_validate(_merged(table, full))
    except ValidationError as error:
        raise _explain(path, error) from error
    return _absolute(recipe, path.parent)


def _merged(table: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """File names in a recipe are relative to it, so that it works from any directory."""
    data = {
        key: str((folder / value).resolve())
        for key in ("train", "dev", "test", "neutral")
        if isinstance(value := getattr(recipe.data, key), str) and (key != "neutral" or (folder / value).is_file())
    }
    base = {}
    local = folder / recipe.base.model
    if local.is_dir():
        base["model"] = str(local.resolve())
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update=data), "base": recipe.base.model_copy(update=base)}
    )


def _explain(path: Path, error: ValidationError) -> RecipeError:
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    if not parts:  # what is wrong between two tables; the sentence names the keys
        return RecipeError(path, "", first["msg"].removeprefix("Value error, "))
    key = ".".join(parts)
    model = _model_at(parts[:-1])
    if first["type"] == "extra_forbidden" and model is not None:
        allowed = list(model.model_fields)
        close = difflib.get_close_matches(parts[-1], allowed, 1)
        return RecipeError(path, key, "unknown key" + (f"; did you mean {close[0]}?" if close else ""), allowed)
    if first["type"] == "missing":
        return RecipeError(path, key, "this key is missing")
    allowed = []
    field = model.model_fields.get(parts[-1]) if model is not None else None
    if first["type"] == "literal_error" and field is not None:
        allowed = [str(value) for value in _literals(field.annotation)]
    given = f", not {first['input']!r}" if not isinstance(first["input"], dict) else ""
    return RecipeError(path, key, first["msg"].removeprefix("Value error, ") + given, allowed)


def _literals(annotation: Any) -> list[Any]:
    if getattr(annotation, "__origin__", None) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _literals(part)]


def _model_at(parts: list[str]) -> type[BaseModel] | None:
    model: type[BaseModel] = Recipe
    for part in parts:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return None
        model = field.annotation
    return model
