"""A user's files → rows: CSV, TSV, JSON, JSONL and CoNLL files, in UTF-8 (with or without BOM) or GB18030.

Files are read in passes and never held in memory (a JSON array is the exception). Every row that cannot be used is
named by file, line and reason: it ends the reading (policy ``error``) or is counted and listed (policy ``skip``).
Splitting and de-duplication are left to `finetune.data.splits`.

What the formats mean here:

- csv: RFC 4180, the first line names the columns unless columns are given by number. Quoted line breaks are allowed.
- tsv: one line, one row, tabs between columns; quotes mean nothing, as in most published corpora.
- jsonl: one object on each line. json: one array of such objects.
- conll: a token and its tag on each line (first and last column, separated by tabs or spaces), a blank line between
  sentences. The tag scheme is found out: BIO (IOB2), IOB1, BMES or BIOES, each with or without ``O``.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast, get_args

from bundle.errors import DataError, RowError
from bundle.rows import Entity, Row

Format = Literal["csv", "tsv", "json", "jsonl", "conll"]
Policy = Literal["error", "skip"]
Scheme = Literal["BIO", "IOB1", "BMES", "BIOES"]
# A column's name, or its number (from 0) in a file without a header line.
Column = str | int
# What every row must tell: one label, any number of labels, entities, or a label or entities (or both).
Need = Literal["label", "labels", "entities", "label or entities"]

SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".bmes": "conll",
    ".bioes": "conll",
}

# Characters of one text or field. Longer ones are almost always an unclosed quote.
MAX_FIELD = 1 << 24
# Bytes of one physical line: a field of four-byte characters and what stands around it.
MAX_LINE = 4 * MAX_FIELD + (1 << 20)
# Bytes of a JSON array, which is read whole.
MAX_JSON = 1 << 29
# Skipped rows that are listed one by one; all of them are counted.
MAX_LISTED = 1000


@dataclass(slots=True)
class ReadReport:
    """What one reading met; filled while the rows are taken.

    Attributes:
        rows: good rows given out.
        skipped: the first 1,000 rows that were left out, each with file, line and reason.
        skipped_count: all of them.
        scheme: the tag scheme of a CoNLL file, else empty.
    """

    file: str = ""
    rows: int = 0
    skipped: list[RowError] = field(default_factory=list)
    skipped_count: int = 0
    encoding: str = ""
    format: str = ""
    scheme: str = ""

    def sentences(self) -> list[str]:
        """The report in sentences: one for the whole, then one for each listed row."""
        scheme = f", {self.scheme}" if self.scheme else ""
        lines = [f"{self.file}: {self.rows:,} rows ({self.format}{scheme}, {self.encoding})"]
        if self.skipped_count:
            lines[0] += f", {self.skipped_count:,} skipped"
            lines += [str(error) for error in self.skipped]
        if self.skipped_count > len(self.skipped):
            lines.append(f"… and {self.skipped_count - len(self.skipped):,} more")
        return lines


def read_file(
    path: Path | str,
    *,
    format: Format | None = None,
    encoding: str | None = None,
    text: Column = "text",
    label: Column = "label",
    pair: Column | None = None,
    entities: str = "entities",
    separator: str = "|",
    policy: Policy = "error",
    labels: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    report: ReadReport | None = None,
    scheme: Scheme | None = None,
    require: Need = "label or entities",
) -> Iterator[Row]:
    """Reads a file of labelled rows, one row at a time.

    Args:
        path: the file.
        format: its format; guessed from the suffix when None.
        encoding: UTF-8 if the file is UTF-8, else GB18030, when None; a given one is not doubted.
        text, label, pair: the columns of csv and tsv (by name, or all by number in a file without a header line) or
            the keys of JSON objects.
        entities: the key of a JSON object's entities: a list of ``[start, end, type]`` or of objects with the keys
            start, end and label; offsets in code points, end-exclusive.
        separator: what parts the labels of a row of many labels where they stand in one string; a JSON object may
            hold a list instead. An empty string or list is a row to which no label applies.
        policy: ``error`` ends at the first bad row; ``skip`` leaves it out and lists it in ``report``.
        labels, types: the labels and the entity types that are allowed; any when None.
        report: filled while rows are taken.
        scheme: the tag scheme of a CoNLL file; found out when None.
        require: what every row must tell; ``labels`` reads the label column as any number of labels.

    Yields:
        rows; the text is given as it stands in the file, so that offsets hold.

    Raises:
        DataError: the file is missing, or format, encoding or columns make no sense.
        RowError: a bad row under policy ``error``; under either policy when the header line lacks a column or a JSON
            file is broken, since there the rest cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return _read(
        lambda: path.open("rb"),
        str(path),
        format=format or _format_of(path),
        encoding=encoding,
        columns=_Columns(text, label, pair, entities, separator if require == "labels" else None),
        rule=_Rule.of(require, labels, types),
        policy=policy,
        report=report,
        scheme=scheme,
    )


def read_conll_bytes(
    content: bytes,
    file: str,
    *,
    policy: Policy = "error",
    types: Sequence[str] | None = None,
    report: ReadReport | None = None,
    scheme: Scheme | None = None,
) -> Iterator[Row]:
    """Reads a CoNLL file that lies in memory; otherwise as `read_file`."""
    return _read(
        lambda: io.BytesIO(content),
        file,
        format="conll",
        encoding=None,
        columns=_Columns("text", "label", None, "entities", None),
        rule=_Rule.of("entities", None, types),
        policy=policy,
        report=report,
        scheme=scheme,
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    text: Column
    label: Column
    pair: Column | None
    entities: str
    separator: str | None


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a row must tell, and the labels and entity types it may use (any where None)."""

    need: Need
    labels: frozenset[str] | None
    types: frozenset[str] | None

    @classmethod
    def of(cls, need: Need, labels: Sequence[str] | None, types: Sequence[str] | None) -> _Rule:
        return cls(need, None if labels is None else frozenset(labels), None if types is None else frozenset(types))


class _Line(NamedTuple):
    """A physical line: its number from 1 and its text with the line end, or why it has none."""

    number: int
    text: str
    problem: str = ""


# A record as a format gives it: where it starts, and the row or the reason why there is none.
_Found = tuple[int, Row | str]
_Open = Callable[[], BinaryIO]


def _read(
    open_file: _Open,
    file: str,
    *,
    format: Format,
    encoding: str | None,
    columns: _Columns,
    rule: _Rule,
    policy: Policy,
    report: ReadReport | None,
    scheme: Scheme | None,
) -> Iterator[Row]:
    if policy not in get_args(Policy):
        raise DataError(f"policy {policy!r} is neither 'error' nor 'skip'")
    seen = report if report is not None else ReadReport()
    seen.file, seen.format = file, format
    seen.encoding = _check_encoding(encoding, file) if encoding else _detect_encoding(open_file, file)
    if format in ("csv", "tsv"):
        if rule.need == "entities":
            raise DataError(f"{file}: a {format} file holds no entities; use CoNLL or JSONL")
        found = _tabular(open_file, file, seen.encoding, columns, tabs=format == "tsv")
    elif format == "jsonl":
        found = _jsonl(open_file, seen.encoding, columns)
    elif format == "json":
        found = _json(open_file, file, seen.encoding, columns)
    elif format == "conll":
        known, spaced = _look_at_tags(open_file, seen.encoding)
        seen.scheme = scheme or known
        found = _conll(open_file, seen.encoding, seen.scheme, spaced)
    else:
        raise DataError(f"{file}: format {format!r} is none of {', '.join(get_args(Format))}")
    return _judged(found, file, policy, rule, seen)


def _judged(found: Iterable[_Found], file: str, policy: Policy, rule: _Rule, seen: ReadReport) -> Iterator[Row]:
    """Lets good rows through; raises or counts the others."""
    for line, outcome in found:
        reason = outcome if isinstance(outcome, str) else _fault(outcome, rule)
        if not reason:
            seen.rows += 1
            yield cast(Row, outcome)
            continue
        error = RowError(file, line, reason)
        if policy == "error":
            raise error
        seen.skipped_count += 1
        if len(seen.skipped) < MAX_LISTED:
            seen.skipped.append(error)


def _fault(row: Row, rule: _Rule) -> str:
    """Why a row cannot be used, or the empty string."""
    for name, value in (("text", row.text), ("pair", row.pair)):
        if value is None:
            continue
        if not value.strip():
            return f"{name} is empty"
        if "\0" in value:
            return f"{name} holds a NUL character at {value.index(chr(0))}"
        if len(value) > MAX_FIELD:
            return f"{name} has {len(value):,} characters; the limit is {MAX_FIELD:,}"
        if lone := re.search("[\ud800-\udfff]", value):
            return f"{name} holds a lone surrogate at {lone.start()}"
    told = {"label": row.label is not None, "labels": row.labels is not None, "entities": row.entities is not None}
    if not any(told[need] for need in rule.need.split(" or ")):
        return f"the row has no {rule.need}"
    given = [row.label] if row.label is not None else list(row.labels or ())
    for number, label in enumerate(given):
        if not label:
            return "label is empty"
        if label in given[:number]:
            return f"label {label!r} is given twice"
        if rule.labels is not None and label not in rule.labels:
            return f"label {label!r} is none of {_few(rule.labels)}"
    end = 0
    for entity in sorted(row.entities or (), key=lambda item: item.start):
        where = f"entity {entity.start}–{entity.end}"
        if not 0 <= entity.start < entity.end <= len(row.text):
            return f"{where} is not inside the text of {len(row.text)} characters"
        if entity.start < end:
            return f"{where} overlaps the one before it, which ends at {end}"
        if not entity.label:
            return f"{where} has no type"
        if rule.types is not None and entity.label not in rule.types:
            return f"entity type {entity.label!r} is none of {_few(rule.types)}"
        end = entity.end
    return ""


def _few(names: Iterable[str]) -> str:
    """Names for an error message; not more than ten."""
    known = sorted(names)
    return ", ".join(known[:10]) + (f" … ({len(known)} in all)" if len(known) > 10 else "")


# Bytes to lines


def _format_of(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: the suffix {suffix!r} does not tell the format; give format as one of "
            f"{', '.join(get_args(Format))}, or use a suffix of {', '.join(SUFFIXES)}"
        )
    return SUFFIXES[suffix]


def _check_encoding(name: str, file: str) -> str:
    """A given encoding, which must keep line breaks as one byte."""
    try:
        codec = codecs.lookup(name)
        plain = "a\n,\t".encode(codec.name) == b"a\n,\t"
    except (LookupError, ValueError, UnicodeError) as error:
        raise DataError(f"{file}: there is no text encoding {name!r}") from error
    if not plain and codec.name != "utf-8-sig":
        raise DataError(f"{file}: encoding {name!r} cannot be read line by line; convert the file to UTF-8")
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


def _detect_encoding(open_file: _Open, file: str) -> str:
    """UTF-8 if all lines are; else whichever of UTF-8 and GB18030 most of the lines that are not ASCII are.

    A UTF-8 file with a few broken lines thus stays UTF-8 and those lines are reported, not read as other characters.
    """
    beyond_ascii = utf8 = 0
    for number, raw in _raw_lines(open_file):
        if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{file}: this is UTF-16; convert the file to UTF-8")
        if not raw.isascii():
            beyond_ascii += 1
            utf8 += _decodes(raw, "utf-8")
    if utf8 * 2 > beyond_ascii or utf8 == beyond_ascii:
        return "utf-8"
    gb18030 = sum(_decodes(raw, "gb18030") for _, raw in _raw_lines(open_file) if not raw.isascii())
    return "gb18030" if gb18030 > utf8 else "utf-8"


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _raw_lines(open_file: _Open) -> Iterator[tuple[int, bytes]]:
    """Physical lines with their numbers; one that is too long comes as its first MAX_LINE + 1 bytes."""
    with open_file() as stream:
        number = 0
        while raw := stream.readline(MAX_LINE + 1):
            number += 1
            yield number, raw
            while len(raw) > MAX_LINE and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE + 1)


def _lines(open_file: _Open, encoding: str) -> Iterator[_Line]:
    for number, raw in _raw_lines(open_file):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if len(raw) > MAX_LINE:
            yield _Line(number, "", f"the line is longer than {MAX_LINE:,} bytes")
            continue
        try:
            yield _Line(number, raw.decode(encoding))
        except UnicodeDecodeError as error:
            wrong = " ".join(f"{byte:02x}" for byte in raw[error.start : error.end])
            yield _Line(number, "", f"not {encoding}: bytes {wrong} at byte {error.start + 1} of the line")


# CSV and TSV


def _tabular(open_file: _Open, file: str, encoding: str, columns: _Columns, *, tabs: bool) -> Iterator[_Found]:
    wanted = [columns.text, columns.label] + ([] if columns.pair is None else [columns.pair])
    numbered = [isinstance(column, int) for column in wanted]
    if any(numbered) and not all(numbered):
        raise DataError(f"{file}: give all columns by name, or all by number (a file without a header line)")
    if any(isinstance(column, int) and column < 0 for column in wanted):
        raise DataError(f"{file}: column numbers count from 0")
    records = _records(open_file, encoding, tabs)
    return _table_rows(records, file, wanted, columns.separator, by_number=all(numbered))


def _table_rows(
    records: Iterator[tuple[int, list[str] | str]],
    file: str,
    wanted: list[Column],
    separator: str | None,
    *,
    by_number: bool,
) -> Iterator[_Found]:
    places: list[int] | None = [int(column) for column in wanted] if by_number else None
    width: int | None = None
    for line, record in records:
        if isinstance(record, str):
            if places is None:
                raise RowError(file, line, f"the header line cannot be read: {record}")
            yield line, record
            continue
        if places is None:
            places, width = _header_places(file, line, record, wanted), len(record)
            continue
        width = width or max(len(record), max(places) + 1)
        if len(record) != width:
            yield line, f"{len(record)} columns where {width} are expected"
            continue
        values = [record[place] for place in places]
        pair = values[2] if len(values) > 2 else None
        if separator is None:
            yield line, Row(values[0], values[1].strip(), pair)
        else:
            yield line, Row(values[0], None, pair, labels=_parted(values[1], separator))


def _parted(labels: str, separator: str) -> tuple[str, ...]:
    """The labels that stand in one string; none in an empty one."""
    return tuple(label.strip() for label in labels.split(separator)) if labels.strip() else ()


def _header_places(file: str, line: int, header: list[str], wanted: list[Column]) -> list[int]:
    names = [name.strip() for name in header]
    for column in wanted:
        if names.count(str(column)) != 1:
            problem = "there is no column" if column not in names else "the header names more than once the column"
            raise RowError(file, line, f"{problem} {column!r}; the columns are: {', '.join(names)}")
    return [names.index(str(column)) for column in wanted]


def _records(open_file: _Open, encoding: str, tabs: bool) -> Iterator[tuple[int, list[str] | str]]:
    """Records with the line on which each starts, or the reason why one cannot be read. Blank lines are passed over."""
    lines = _lines(open_file, encoding)
    if tabs:
        for line in lines:
            content = line.text.rstrip("\r\n")
            if line.problem or content:
                yield line.number, line.problem or content.split("\t")
        return
    # The limit is one for the whole process; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    feed = _CsvFeed(lines)
    reader = csv.reader(feed, strict=True)
    while True:
        start = feed.number + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"a field has more than {MAX_FIELD:,} characters" if "larger than" in str(error) else str(error)
            if feed.problem:
                yield feed.problem_line, feed.problem
                feed.problem = ""
            else:
                yield start, f"not CSV: {reason}{_quote_hint(start, feed.number)}"
            if feed.done:
                return
            continue
        if feed.problem:
            yield feed.problem_line, feed.problem
            feed.problem = ""
        elif record:
            yield start, record


def _quote_hint(start: int, end: int) -> str:
    return f" (a quote opened here is read up to line {end})" if end > start else ""


class _CsvFeed:
    """Gives decoded lines to `csv.reader` and remembers where it is and what could not be decoded."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self.number = 0
        self.problem = ""
        self.problem_line = 0
        self.done = False

    def __iter__(self) -> _CsvFeed:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self.done = True
            raise StopIteration
        self.number = line.number
        if line.problem:
            self.problem, self.problem_line = line.problem, line.number
            # Stands for the lost line; the record that it belongs to is not used.
            return "\n"
        return line.text


# JSON


def _jsonl(open_file: _Open, encoding: str, columns: _Columns) -> Iterator[_Found]:
    for line in _lines(open_file, encoding):
        if line.problem:
            yield line.number, line.problem
        elif line.text.strip():
            try:
                value = json.loads(line.text.rstrip("\r\n"))
            except (ValueError, RecursionError) as error:
                yield line.number, f"not JSON: {_json_reason(error)}"
            else:
                yield line.number, _object_row(value, columns)


def _json(open_file: _Open, file: str, encoding: str, columns: _Columns) -> Iterator[_Found]:
    with open_file() as stream:
        raw = stream.read(MAX_JSON + 1)
    if len(raw) > MAX_JSON:
        raise DataError(f"{file}: a JSON array of more than {MAX_JSON:,} bytes; convert it to JSONL")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode(encoding)
    except UnicodeDecodeError as error:
        raise RowError(file, raw.count(b"\n", 0, error.start) + 1, f"not {encoding}") from error
    decoder, blank = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip(place: int) -> int:
        found = blank.match(text, place)
        return found.end() if found else place

    place = skip(0)
    line, counted = 1 + text.count("\n", 0, place), place
    if text[place : place + 1] != "[":
        raise RowError(file, line, "expected an array of objects; for one object on each line use format jsonl")
    place = skip(place + 1)
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "pos", place)
            line += text.count("\n", counted, at)
            raise RowError(file, line, f"not JSON: {_json_reason(error)}") from error
        yield line, _object_row(value, columns)
        place = skip(place)
        if text[place : place + 1] == ",":
            place = skip(place + 1)
        elif text[place : place + 1] != "]":
            line += text.count("\n", counted, place)
            raise RowError(file, line, "not JSON: expected a comma or the end of the array")
    if skip(place + 1) != len(text):
        line += text.count("\n", counted, place)
        raise RowError(file, line, "not JSON: there is more after the end of the array")


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object_row(value: object, columns: _Columns) -> Row | str:
    """A JSON object as a row, or what is wrong with its keys and types."""
    if not isinstance(value, dict):
        return f"expected an object, found {_kind(value)}"
    texts: list[str | None] = []
    for column in (columns.text, columns.pair):
        if column is None:
            texts.append(None)
            continue
        if column not in value:
            return f"there is no key {column!r}"
        part = value[column]
        if not isinstance(part, str):
            return f"{column} must be a string, found {_kind(part)}"
        texts.append(part)
    label, labels = value.get(columns.label), None
    if columns.separator is not None:
        if columns.label not in value:
            return f"there is no {columns.label!r}"
        parted = _labels_of(label, columns.separator)
        if parted is None:
            return f"{columns.label} must be a list of labels, or a string of them, found {_kind(label)}"
        label, labels = None, parted
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if label is not None and not isinstance(label, str):
        return f"{columns.label} must be a string or a whole number, found {_kind(label)}"
    listed = value.get(columns.entities)
    entities: tuple[Entity, ...] | None = None
    if listed is not None:
        if not isinstance(listed, list):
            return f"{columns.entities} must be a list, found {_kind(listed)}"
        made = [_entity(item) for item in listed]
        if None in made:
            return f"{columns.entities}[{made.index(None)}] must be [start, end, type] or have start, end and label"
        entities = tuple(sorted((item for item in made if item), key=lambda item: item.start))
    return Row(texts[0] or "", None if label is None else label.strip(), texts[1], entities, labels)


def _labels_of(value: object, separator: str) -> tuple[str, ...] | None:
    """A JSON value as the labels of a row; None if it cannot be."""
    if isinstance(value, str):
        return _parted(value, separator)
    if not isinstance(value, list):
        return None
    if not all(isinstance(item, str) or type(item) is int for item in value):
        return None
    return tuple(str(item).strip() for item in value)


def _entity(item: object) -> Entity | None:
    if isinstance(item, dict):
        item = [item.get("start"), item.get("end"), item.get("label")]
    if not isinstance(item, list) or len(item) != 3:
        return None
    start, end, kind = item
    # type() and not isinstance(): true is an int.
    if type(start) is not int or type(end) is not int or not isinstance(kind, str):
        return None
    return Entity(start, end, kind)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# CoNLL

# The letters of each scheme → what they mean: begin, inside, end, single. L and U are other names for E and S.
_MEANINGS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}


def _split_line(text: str) -> list[str]:
    """Columns of a CoNLL line. Only tabs and spaces separate: an ideographic space can be a token."""
    content = text.rstrip("\r\n")
    return content.split("\t") if "\t" in content else content.rstrip(" ").split(" ")


def _is_blank(text: str) -> bool:
    return not text.strip("\r\n \t")


def _look_at_tags(open_file: _Open, encoding: str) -> tuple[Scheme, bool]:
    """The tag scheme of a file, and whether its tokens are words (so that Latin ones need a space between them)."""
    letters: Counter[str] = Counter()
    words = loose_inside = plain_begin = False
    before = "O"
    for line in _lines(open_file, encoding):
        if line.problem:
            continue
        if _is_blank(line.text):
            before = "O"
            continue
        columns = _split_line(line.text)
        tag = columns[-1]
        words = words or len(columns[0]) > 1
        letter, dash, kind = tag.partition("-")
        if dash:
            letters[letter] += 1
            same = before[1:] == f"-{kind}"
            loose_inside = loose_inside or (letter == "I" and not same)
            plain_begin = plain_begin or (letter == "B" and not same)
        before = tag
    if letters["M"] and letters["M"] >= letters["I"]:
        return "BMES", words
    if any(letters[letter] for letter in "ESLU"):
        return "BIOES", words
    # In IOB1 a B stands only between two neighbours of one type; in IOB2 no I stands without a B before it.
    return ("IOB1" if loose_inside and not plain_begin else "BIO"), words


def _conll(open_file: _Open, encoding: str, scheme: str, words: bool) -> Iterator[_Found]:
    sentence = _Sentence(scheme, words)
    for line in _lines(open_file, encoding):
        if not line.problem and _is_blank(line.text):
            yield from sentence.close()
            sentence = _Sentence(scheme, words)
        else:
            sentence.add(line)
    yield from sentence.close()


class _Sentence:
    """Collects the lines of one sentence into a text and its entities."""

    def __init__(self, scheme: str, words: bool) -> None:
        self._scheme, self._words = scheme, words
        self._line = 0
        self._fault: tuple[int, str] | None = None
        self._text: list[str] = []
        self._length = 0
        self._last = ""
        self._width = 0
        self._open: Entity | None = None
        self._entities: list[Entity] = []

    def add(self, line: _Line) -> None:
        """Takes one line; after the first fault the rest of the sentence is only read past."""
        self._line = self._line or line.number
        if self._fault:
            return
        reason = line.problem or self._take(_split_line(line.text))
        if reason:
            self._fault = line.number, reason

    def close(self) -> Iterator[_Found]:
        """The sentence as a row, or its first fault; nothing if it is empty or a document mark."""
        if not self._line:
            return
        if not self._fault and self._open and self._scheme in ("BMES", "BIOES"):
            self._fault = (self._line, f"the sentence ends inside an entity of type {self._open.label}")
        if self._fault:
            yield self._fault
            return
        text = "".join(self._text)
        if text == "-DOCSTART-":
            return
        self._shut()
        yield self._line, Row(text, entities=tuple(self._entities))

    def _take(self, columns: list[str]) -> str:
        """Adds a token; returns what is wrong with it, or the empty string."""
        self._width = self._width or len(columns)
        if len(columns) < 2 or len(columns) != self._width:
            return f"{len(columns)} columns where {max(self._width, 2)} are expected"
        token, tag = columns[0], columns[-1].strip()
        if not token:
            return "the token is empty"
        if self._words and self._last and _is_latin(self._last[-1]) and _is_latin(token[0]):
            self._text.append(" ")
            self._length += 1
        start = self._length
        self._text.append(token)
        self._last = token
        self._length += len(token)
        return self._tag(tag, token, start)

    def _tag(self, tag: str, token: str, start: int) -> str:
        closed = self._scheme in ("BMES", "BIOES")
        letter, _, kind = tag.partition("-")
        opened = self._open
        if tag == "O":
            if closed and opened:
                return f"tag O on {token!r} comes before the end of an entity of type {opened.label}"
            self._shut()
            return ""
        meaning = _MEANINGS.get(letter)
        if meaning is None or not kind or (meaning in "ES" and not closed):
            return f"tag {tag!r} on {token!r} is not a tag of the scheme {self._scheme}"
        goes_on = opened is not None and opened.label == kind
        if meaning in "BS":
            if closed and opened:
                return f"tag {tag!r} on {token!r} comes before the end of an entity of type {opened.label}"
            self._shut()
            self._open = Entity(start, self._length, kind)
        elif goes_on and opened is not None:
            self._open = Entity(opened.start, self._length, kind)
        elif self._scheme == "IOB1":
            self._shut()
            self._open = Entity(start, self._length, kind)
        else:
            return f"tag {tag!r} on {token!r} continues no entity of type {kind}"
        if meaning in "ES":
            self._shut()
        return ""

    def _shut(self) -> None:
        if self._open:
            self._entities.append(self._open)
            self._open = None


def _is_latin(character: str) -> bool:
    """Letters and digits of scripts that part words by spaces; Chinese, kana and full-width forms are not."""
    return character.isalnum() and ord(character) < 0x2E80
