"""``python -m finetune advise``: profiles a file of rows and proposes a recipe, with reasons.

The proposals (base model, lengths, rates, method) are rules of thumb, and the matrix shows what was weighed; ``--race``
lets the first few prove themselves (`finetune.race`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from bundle.errors import DataError
from bundle.folder import write_atomic
from bundle.rows import Row
from finetune.data.splits import deduplicate, stratum_of, text_key
from finetune.recipe import Recipe
from finetune.report.markup import toml
from finetune.terminal import console, say

CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
LATIN = re.compile(r"[A-Za-z]+")
# A WordPiece vocabulary cuts a Latin word into so many pieces, about; a Chinese character is a token of its own.
PIECES_A_WORD = 1.4
# Of the rows, so many are to fit into one window; the others are read in several.
FIT = 0.9
# Below: few rows, on which a new head's noise does harm (Howard and Ruder 2018; Kumar et al. 2022). Above: enough to
# train every layer.
FEW, MANY = 1000, 5000


@dataclass(frozen=True)
class Profile:
    """What a file of rows is like.

    Attributes:
        task: the kind of task that its rows are for.
        rows: after exact duplicates and contradictions were taken out.
        duplicates: rows that were taken out.
        counts: rows of each label, or of each set of entity types.
        tokens: of each row, estimated.
        chinese: share of Chinese characters among letters, 0 to 1.
    """

    task: str
    rows: int
    duplicates: int
    counts: dict[str, int]
    tokens: np.ndarray[Any, np.dtype[np.int64]]
    chinese: float

    def quantile(self, share: float) -> int:
        return int(np.quantile(self.tokens, share))

    @property
    def imbalance(self) -> float:
        """Rows of the most frequent label over those of the rarest."""
        return max(self.counts.values()) / min(self.counts.values())

    @property
    def language(self) -> str:
        return "Chinese" if self.chinese > 0.7 else "English or alike" if self.chinese < 0.3 else "mixed"


def profile(rows: Sequence[Row]) -> Profile:
    """Profiles rows.

    Raises:
        DataError: there are none.
    """
    kept, *_ = deduplicate(list(rows), [], [], key=text_key)
    if not kept:
        raise DataError("no rows are left to profile")
    texts = [row.text + (row.pair or "") for row in kept]
    letters = [(len(CHINESE.findall(text)), LATIN.findall(text)) for text in texts]
    chinese = sum(count for count, _ in letters)
    latin = sum(len(word) for _, words in letters for word in words)
    tokens = [
        count + round(PIECES_A_WORD * len(words)) + sum(not c.isspace() and not c.isalnum() for c in text)
        for (count, words), text in zip(letters, texts, strict=True)
    ]
    return Profile(
        _task(kept),
        len(kept),
        len(rows) - len(kept),
        dict(Counter(stratum_of(row) for row in kept).most_common()),
        np.array(tokens, dtype=np.int64),
        chinese / max(chinese + latin, 1),
    )


def _task(rows: Sequence[Row]) -> str:
    labelled, tagged = any(row.label is not None for row in rows), any(row.entities is not None for row in rows)
    if labelled and tagged:
        return "multi-task"
    if tagged:
        return "token-classification"
    if any(row.labels is not None for row in rows):
        return "multi-label"
    return "text-pair" if any(row.pair is not None for row in rows) else "single-label"


@dataclass(frozen=True)
class Advice:
    """One proposed setting and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A base model with a way of training it.

    Attributes:
        width: of the base model.
        work: of a token in a step, relative to m3e-small with all layers.
        points: how well it fits, more is better; see `candidates`.
        reasons: what gave and took points.
    """

    base: str
    method: str
    width: int
    work: float
    points: float
    reasons: tuple[str, ...]
    train: dict[str, Any]

    @property
    def name(self) -> str:
        """A folder's own name is enough of its path."""
        return f"{Path(self.base).name}-{self.method}".replace(" ", "-")


# layers, width, for Chinese, comes by pip, licence allows products
Base = tuple[int, int, bool, bool, bool]
BASES: dict[str, Base] = {
    "m3e-small": (4, 512, True, True, False),
    "ernie-3.0-nano-zh": (4, 312, True, False, True),
    "ernie-3.0-medium-zh": (6, 768, True, False, True),
    "ernie-3.0-base-zh": (12, 768, True, False, True),
    "bert-base-uncased": (12, 768, False, False, True),
}
METHODS = ("head first", "lower half frozen", "all layers")


def candidates(found: Profile, gpu: bool = False, bases: dict[str, Base] | None = None) -> list[Candidate]:
    """The model-selection matrix, best first: every base with every method."""
    result = []
    for base, (layers, width, chinese, by_pip, product) in (BASES if bases is None else bases).items():
        for method in METHODS:
            marks: list[tuple[float, str]] = []
            if chinese != (found.chinese >= 0.3):
                marks.append((-6, f"another language than the text ({found.language})"))
            size = layers * width * width / (4 * 512 * 512)
            if size > 2 and not gpu:
                marks.append((-2, f"{size:.0f} times the work of m3e-small, without a GPU"))
            if size > 2 and found.rows >= MANY:
                marks.append((1.5, "large enough to use many rows"))
            marks.append((1, "comes by pip") if by_pip else (-0.5, "needs a hub, or its folder"))
            if not product:
                marks.append((-0.5, "licence: research only"))
            wanted = METHODS[0 if found.rows < FEW else 1 if found.rows < MANY else 2]
            distance = abs(METHODS.index(method) - METHODS.index(wanted))
            marks.append((2 - distance, f"{found.rows:,} rows: {wanted} is usual"))
            ways: dict[str, dict[str, Any]] = {
                "head first": {"head_first": 0.2},
                "lower half frozen": {"freeze_layers": layers // 2, "freeze_embeddings": True},
                "all layers": {},
            }
            work = size * (0.67 if method == "lower half frozen" else 1.0)
            points, reasons = sum(given for given, _ in marks), tuple(f"{given:+g} {why}" for given, why in marks)
            result.append(Candidate(base, method, width, work, points, reasons, ways[method]))
    return sorted(result, key=lambda one: (-one.points, one.work))


def advise_on(found: Profile, best: Candidate) -> list[Advice]:
    """What to put into a recipe, with reasons."""
    long = found.quantile(FIT) + 2
    window = next((size for size in (32, 64, 128, 192, 256) if size >= long), 256)
    several = float((found.tokens > window - 2).mean())
    batch = 8 if found.rows < FEW else 16 if found.rows < 4 * MANY else 32
    epochs = min(8, max(1, round(3000 / found.rows))) if found.rows < MANY else 2 if found.rows < 4 * MANY else 1
    base = 2e-4 if best.width < 768 else 5e-5
    rate = base * (0.5 if best.method == "all layers" else 1.0)
    advice = [
        Advice("base.model", best.base, "; ".join(best.reasons)),
        Advice(
            "text.max_tokens",
            window,
            f"{FIT:.0%} of the texts have at most {long - 2:,} tokens (median {found.quantile(0.5):,}, longest "
            f"{int(found.tokens.max()):,}); {several:.0%} will be read in several windows",
        ),
        Advice("text.overlap", window // 8, "an eighth of a window: a clause at a cut stands whole in one"),
        Advice("train.batch", batch, f"{found.rows:,} rows: {found.rows * epochs // batch:,} updates in all"),
        Advice("train.epochs", epochs, "some 200 updates are needed to move a new head, some passes do no harm"),
        Advice("train.learning_rate", rate, f"small encoders bear more than BERT-base's 2e-5 to 5e-5; {best.method}"),
        Advice("train.head_learning_rate", 5 * rate, "a new head starts from nothing"),
        *(Advice(f"train.{key}", value, f"method: {best.method}") for key, value in best.train.items()),
    ]
    if found.task != "token-classification" and found.imbalance >= 3:
        exponent = 0.5 if found.imbalance < 20 else 1.0
        reason = f"the most frequent label has {found.imbalance:.0f} times the rows of the rarest"
        advice.append(Advice("train.class_balance", exponent, reason))
    return advice


def warnings(found: Profile) -> list[str]:
    """What should be mended before any training."""
    notes = []
    rare = [f"{name} ({count})" for name, count in found.counts.items() if count < 10]
    if rare:
        notes.append(f"labels with fewer than 10 rows cannot be learned, nor measured: {', '.join(rare[:8])}")
    if found.duplicates > 0.05 * found.rows:
        notes.append(f"{found.duplicates:,} rows are duplicates or contradict each other; they are left out")
    if found.rows < 200:
        notes.append(
            f"{found.rows} rows are few: dev and test get about {found.rows // 10} each, whose score says little"
        )
    if found.language == "mixed":
        notes.append("Chinese and Latin text are mixed: a base for Chinese may cut the Latin words into scraps")
    return notes


def recipe_of(advice: Sequence[Advice], found: Profile, data: dict[str, Any], summary: str) -> Recipe:
    """The advice as a recipe."""
    tables: dict[str, Any] = {"name": "advised", "summary": summary, "task": found.task, "data": data}
    for one in advice:
        table, _, key = one.key.partition(".")
        tables.setdefault(table, {})[key] = one.value
    return Recipe.model_validate(tables)


def advise(
    data: Annotated[Path, typer.Argument(help="A CSV, TSV, JSON, JSONL or CoNLL file of labelled rows.")],
    text: Annotated[str, typer.Option(help="Column or key of the text.")] = "text",
    label: Annotated[str, typer.Option(help="Column or key of the label.")] = "label",
    pair: Annotated[str | None, typer.Option(help="Column or key of the second text.")] = None,
    multi: Annotated[bool, typer.Option("--multi", help="A row may have any number of labels.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU will train: larger bases are no burden.")] = False,
    base: Annotated[str, typer.Option(help="Only this base model; a local folder is a base model too.")] = "",
    write: Annotated[Path | None, typer.Option(help="Write the proposal as a recipe.")] = None,
    race: Annotated[bool, typer.Option("--race", help="Train the first candidates against each other.")] = False,
    racers: Annotated[int, typer.Option(min=2, help="How many of them.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the race.")] = Path("artifacts/race"),
) -> None:
    """Profiles rows and proposes a recipe with reasons; --race lets the top candidates run against each other.

    Example: python -m finetune advise rows.csv --race --write my.toml
    """
    from finetune.data.readers import ReadReport, read_file

    report = ReadReport()
    need = "labels" if multi else "label or entities"
    rows = list(
        read_file(data, text=text, label=label, pair=pair, policy="skip", report=report, require=need)  # type: ignore[arg-type]
    )
    for sentence in report.sentences():
        say(sentence)
    found = profile(rows)
    bases = BASES if not base else {base: BASES[base]} if base in BASES else _own(base)
    matrix = candidates(found, gpu, bases)
    _show(found, matrix)
    source = {"train": str(data.resolve()), "text": text, "label": label, **({"pair": pair} if pair else {})}
    chosen = matrix[0]
    if race:
        from finetune.race import run_race

        recipes = {
            one.name: recipe_of(advise_on(found, one), found, source, f"{data.name}, {one.name}")
            for one in matrix[:racers]
        }
        winner = run_race(recipes, out, say)
        chosen = next(one for one in matrix if one.name == winner)
    advice = advise_on(found, chosen)
    for one in advice:
        say(f"{one.key} = {one.value}: {one.reason}")
    if write is not None:
        given = recipe_of(advice, found, source, f"{data.name}, as advised").model_dump(mode="json", exclude_unset=True)
        del given["name"]
        write_atomic(write, toml(given) + "\n")
        console.print(f"next: make finetune RECIPE={write}")


def _own(base: str) -> dict[str, Base]:
    """The line of a base model that the table lacks: a folder's own shape, of a hub name that of BERT-base.

    Its language is not known: it is taken to be the text's.
    """
    from finetune.model.base import read_config

    shape = read_config(Path(base))[1] if Path(base).is_dir() else {}
    return {base: (shape.get("num_hidden_layers", 12), shape.get("hidden_size", 768), True, False, True)}


def _show(found: Profile, matrix: Sequence[Candidate]) -> None:
    from rich.table import Table

    shares = ", ".join(f"{name} {count:,}" for name, count in list(found.counts.items())[:8])
    console.print(f"[bold]{found.rows:,} rows[/bold] for {found.task}, {found.language} ({found.chinese:.0%} Chinese)")
    say(f"labels: {shares}")
    say(
        f"tokens: median {found.quantile(0.5):,}, 90% {found.quantile(0.9):,}, longest {int(found.tokens.max()):,}; "
        f"{found.duplicates:,} duplicates"
    )
    for note in warnings(found):
        say(f"note: {note}")
    table = Table(title="what was weighed", title_justify="left")
    for column in ("base", "method", "work", "points", "because"):
        table.add_column(column, justify="right" if column in ("work", "points") else "left", overflow="fold")
    for one in matrix[:8]:
        table.add_row(one.base, one.method, f"{one.work:.1f}×", f"{one.points:g}", "; ".join(one.reasons))
    console.print(table)
