"""Readers: every format gives the same rows, and every bad row is named by file, line and reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from bundle.errors import DataError, RowError
from bundle.rows import Entity, Row, row_to_json
from finetune.data import readers
from finetune.data.readers import ReadReport, read_file
from tests.properties import cases

files = cases(60, HealthCheck.function_scoped_fixture)

# Anything a row may hold: no NUL, no lone surrogate, not only white space.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
labels = st.sampled_from(["正面", "neutral", "negative", "a,b", '"q"'])
rows_of_text = st.lists(st.builds(Row, text=texts, label=labels), min_size=1, max_size=8)


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, **options: Any) -> list[Row]:
    return list(read_file(path, **options))


def complaint(path: Path, **options: Any) -> str:
    """What reading says, without the folder."""
    with pytest.raises(RowError) as caught:
        rows_of(path, **options)
    return str(caught.value).removeprefix(f"{path.parent}/")


# Round trips


@files
@given(rows=rows_of_text, bom=st.booleans())
def test_csv_gives_back_what_was_written(tmp_path: Path, rows: list[Row], bom: bool) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(["id", "label", "text"])
        writer.writerows([str(number), row.label, row.text] for number, row in enumerate(rows))
    assert rows_of(path) == rows


@files
@given(rows=rows_of_text)
def test_tsv_gives_back_what_was_written_and_quotes_mean_nothing(tmp_path: Path, rows: list[Row]) -> None:
    rows = [Row(flat, row.label) for row in rows if (flat := row.text.translate(dict.fromkeys(b"\t\r\n", " "))).strip()]
    path = put(tmp_path / "rows.tsv", "".join(f"{row.text}\t{row.label}\n" for row in rows))
    assert rows_of(path, text=0, label=1) == rows


@files
@given(rows=rows_of_text, indent=st.sampled_from([None, 2]))
def test_json_and_jsonl_give_the_same_rows(tmp_path: Path, rows: list[Row], indent: int | None) -> None:
    lines = [row_to_json(row) for row in rows]
    array = json.dumps([json.loads(line) for line in lines], indent=indent)
    assert rows_of(put(tmp_path / "rows.jsonl", "\n".join(lines))) == rows
    assert rows_of(put(tmp_path / "rows.json", array)) == rows


@st.composite
def tagged_rows(draw: st.DrawFn) -> list[Row]:
    """Sentences of single characters with entities that may touch each other."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        text = draw(st.text("京海人民。张三丰，2x", min_size=1, max_size=12))
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
        entities = [
            Entity(start, end, draw(st.sampled_from(["PER", "LOC"])))
            for start, end in pairwise(cuts)
            if draw(st.booleans())
        ]
        rows.append(Row(text, entities=tuple(entities)))
    return rows


def as_conll(rows: list[Row], scheme: str, gap: str = "\t", end: str = "\n") -> str:
    """Rows as a CoNLL file of characters."""
    lines = []
    for row in rows:
        tags = ["O"] * len(row.text)
        for before, entity in zip((None, *(row.entities or ())), row.entities or (), strict=False):
            length = entity.end - entity.start
            touches = before is not None and before.end == entity.start and before.label == entity.label
            letters = {
                "BIO": "B" + "I" * (length - 1),
                "IOB1": ("B" if touches else "I") + "I" * (length - 1),
                "BMES": "S" if length == 1 else "B" + "M" * (length - 2) + "E",
                "BIOES": "S" if length == 1 else "B" + "I" * (length - 2) + "E",
            }[scheme]
            tags[entity.start : entity.end] = [f"{letter}-{entity.label}" for letter in letters]
        lines += [f"{character}{gap}{tag}" for character, tag in zip(row.text, tags, strict=True)] + [""]
    return end.join(lines) + end


@files
@given(rows=tagged_rows(), gap=st.sampled_from([" ", "\t"]), end=st.sampled_from(["\n", "\r\n"]))
def test_every_tag_scheme_reads_to_the_same_entities(tmp_path: Path, rows: list[Row], gap: str, end: str) -> None:
    for scheme in ("BIO", "IOB1", "BMES", "BIOES"):
        path = put(tmp_path / f"{scheme}.conll", as_conll(rows, scheme, gap, end))
        assert rows_of(path, scheme=scheme) == rows
        if scheme != "IOB1":  # an IOB1 file whose entities all touch cannot be told from IOB2
            assert rows_of(path) == rows


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BMES", "BIOES"])
def test_the_tag_scheme_is_found_out_and_recorded(tmp_path: Path, scheme: str) -> None:
    rows = [Row("张三丰在北京", entities=(Entity(0, 3, "PER"), Entity(4, 6, "LOC")))]
    rows.append(Row("上海北京人", entities=(Entity(0, 2, "LOC"), Entity(2, 4, "LOC"))))
    report = ReadReport()
    assert rows_of(put(tmp_path / "tags.conll", as_conll(rows, scheme)), report=report) == rows
    assert (report.scheme, report.rows) == (scheme, 2)


# Encodings


@pytest.mark.parametrize(
    ("encoding", "recorded"), [("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("gb18030", "gb18030"), ("gbk", "gb18030")]
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.conll"])
def test_encodings_are_told_apart(tmp_path: Path, encoding: str, recorded: str, name: str) -> None:
    content = {
        "rows.csv": "text,label\n天气很好,正面\n",
        "rows.tsv": "text\tlabel\n天气很好\t正面\n",
        "rows.jsonl": '{"text": "天气很好", "label": "正面"}\n',
        "rows.json": '[{"text": "天气很好", "label": "正面"}]',
        "rows.conll": "天 O\n气 O\n很 O\n好 O\n",
    }[name]
    report = ReadReport()
    (row,) = read_file(put(tmp_path / name, content.encode(encoding)), report=report)
    assert row.text == "天气很好"
    assert report.encoding == recorded


def test_a_given_encoding_is_not_doubted(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.tsv", "天氣很好\t正面\n".encode("big5"))
    assert rows_of(path, text=0, label=1, encoding="big5") == [Row("天氣很好", "正面")]


def test_one_broken_line_does_not_turn_a_utf8_file_into_gb18030(tmp_path: Path) -> None:
    good = "".join(f"第{number}行写得很好\t正面\n" for number in range(4)).encode()
    path = put(tmp_path / "rows.tsv", good + b"\xe5\xa4\xff\tx\n" + good)
    report = ReadReport()
    assert len(rows_of(path, text=0, label=1, policy="skip", report=report)) == 8
    assert report.encoding == "utf-8"
    assert [error.line for error in report.skipped] == [5]
    assert complaint(path, text=0, label=1).startswith("rows.tsv:5: not utf-8: bytes e5 a4 at byte 1 of the line")


def test_an_undecodable_line_inside_a_quoted_csv_field_is_named(tmp_path: Path) -> None:
    content = "text,label\n好,a\n".encode() + b'"x\n\xff\xfe\ny",a\n' + "很好,b\n".encode()
    path = put(tmp_path / "rows.csv", content)
    report = ReadReport()
    assert rows_of(path, policy="skip", report=report, encoding="utf-8") == [Row("好", "a"), Row("很好", "b")]
    assert [error.line for error in report.skipped] == [4]


def test_utf16_and_unknown_encodings_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", "text,label\n好,a\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16; convert the file to UTF-8"):
        read_file(path)
    with pytest.raises(DataError, match="cannot be read line by line"):
        read_file(path, encoding="utf-16")
    with pytest.raises(DataError, match="no text encoding 'klingon'"):
        read_file(path, encoding="klingon")


# Bad rows

BAD = [
    ("a.csv", 'text,label\n好,a\n"  ",a\n', {}, "a.csv:3: text is empty"),
    ("a.csv", "text,label\n好,\n", {}, "a.csv:2: label is empty"),
    ("a.csv", "text,label\n好\n", {}, "a.csv:2: 1 columns where 2 are expected"),
    ("a.csv", "text,label\n好,a,b\n", {}, "a.csv:2: 3 columns where 2 are expected"),
    ("a.csv", "text,label\n好\0,a\n", {}, "a.csv:2: text holds a NUL character at 1"),
    ("a.csv", "text,label\n好,c\n", {"labels": ("a", "b")}, "a.csv:2: label 'c' is none of a, b"),
    ("a.csv", "words,label\n好,c\n", {}, "a.csv:1: there is no column 'text'; the columns are: words, label"),
    ("a.csv", "text,text,label\n", {}, "a.csv:1: the header names more than once the column 'text'; the columns are"),
    ("a.csv", 'text,label\n"好\n天"x,a\n', {}, "a.csv:2: not CSV: "),
    ("a.csv", 'text,label\n好,a\n"天,a\n气,a\n', {}, "a.csv:3: not CSV: unexpected end of data (a quote opened here"),
    ("a.csv", 'text,label\n"一\n二\n三",a\n\n,b\n', {}, "a.csv:6: text is empty"),
    ("a.csv", "text,label,other\n好,a, \n", {"pair": "other"}, "a.csv:2: pair is empty"),
    ("a.tsv", "好\ta\n\ta\n", {"text": 0, "label": 1}, "a.tsv:2: text is empty"),
    ("a.tsv", "好\ta\n", {"text": 0, "label": 3}, "a.tsv:1: 2 columns where 4 are expected"),
    ("a.jsonl", '{"text": "好", "label": "a"}\n{"text": \n', {}, "a.jsonl:2: not JSON: Expecting value (column 10)"),
    ("a.jsonl", "\n[1]\n", {}, "a.jsonl:2: expected an object, found an array"),
    ("a.jsonl", '{"label": "a"}', {}, "a.jsonl:1: there is no key 'text'"),
    ("a.jsonl", '{"text": 3, "label": "a"}', {}, "a.jsonl:1: text must be a string, found a number"),
    ("a.jsonl", '{"text": "好"}', {}, "a.jsonl:1: the row has no label or entities"),
    ("a.jsonl", '{"text": "好", "label": null}', {}, "a.jsonl:1: the row has no label or entities"),
    ("a.jsonl", '{"text": "好", "label": "a"}', {"require": "entities"}, "a.jsonl:1: the row has no entities"),
    ("a.jsonl", '{"text": "好", "entities": []}', {"require": "label"}, "a.jsonl:1: the row has no label"),
    ("a.jsonl", '{"text": "好", "label": true}', {}, "a.jsonl:1: label must be a string or a whole number"),
    ("a.jsonl", '{"text": "好", "label": " "}', {}, "a.jsonl:1: label is empty"),
    ("a.jsonl", '{"text": "a\\ud800b", "label": "a"}', {}, "a.jsonl:1: text holds a lone surrogate at 1"),
    ("a.jsonl", '{"text": "好", "entities": 3}', {}, "a.jsonl:1: entities must be a list, found a number"),
    (
        "a.jsonl",
        '{"text": "好", "entities": [[0, 1, "X"], [0]]}',
        {},
        "a.jsonl:1: entities[1] must be [start, end, typ",
    ),
    ("a.jsonl", '{"text": "好", "entities": [[0, 2, "X"]]}', {}, "a.jsonl:1: entity 0–2 is not inside the text of 1"),
    ("a.jsonl", '{"text": "好", "entities": [[1, 1, "X"]]}', {}, "a.jsonl:1: entity 1–1 is not inside the text"),
    ("a.jsonl", '{"text": "好", "entities": [[-1, 1, "X"]]}', {}, "a.jsonl:1: entity -1–1 is not inside the text"),
    ("a.jsonl", '{"text": "好天", "entities": [[0, 2, "X"], [1, 2, "Y"]]}', {}, "a.jsonl:1: entity 1–2 overlaps"),
    ("a.jsonl", '{"text": "好", "entities": [[0, true, "X"]]}', {}, "a.jsonl:1: entities[0] must be"),
    (
        "a.jsonl",
        '{"text": "好", "entities": [[0, 1, "X"]]}',
        {"types": ["Y"]},
        "a.jsonl:1: entity type 'X' is none of Y",
    ),
    ("a.jsonl", "[" * 100_000, {}, "a.jsonl:1: not JSON: nested too deeply"),
    ("a.json", '[{"text": "好", "label": "a"},\n {"text": "", "label": "a"}]', {}, "a.json:2: text is empty"),
    ("a.json", '[{"text": "好", "label": "a"},\n\n {"text" "b"}]', {}, "a.json:3: not JSON: Expecting ':' delimiter"),
    ("a.json", '[{"text": "好", "label": "a"}\n{}]', {}, "a.json:2: not JSON: expected a comma or the end"),
    ("a.json", '[{"text": "好", "label": "a"}', {}, "a.json:1: not JSON: expected a comma or the end"),
    ("a.json", '\n{"text": "好"}', {}, "a.json:2: expected an array of objects"),
    ("a.json", "[]\n[]", {}, "a.json:1: not JSON: there is more after the end of the array"),
    ("a.conll", "好 O\n天 O X\n", {}, "a.conll:2: 3 columns where 2 are expected"),
    ("a.conll", "好 O\n\n天\n", {}, "a.conll:3: 1 columns where 2 are expected"),
    ("a.conll", "好 O\n天 Q-PER\n", {}, "a.conll:2: tag 'Q-PER' on '天' is not a tag of the scheme BIO"),
    ("a.conll", "好 O\n天 B\n", {}, "a.conll:2: tag 'B' on '天' is not a tag of the scheme BIO"),
    ("a.conll", "好 B-X\n天 I-X\n\n气 O\n真 I-X\n", {}, "a.conll:5: tag 'I-X' on '真' continues no entity of type X"),
    ("a.conll", "好 B-X\n天 E-Y\n", {}, "a.conll:2: tag 'E-Y' on '天' continues no entity of type Y"),
    ("a.conll", "好 B-X\n天 M-X\n气 O\n", {}, "a.conll:3: tag O on '气' comes before the end of an entity of type X"),
    ("a.conll", "好 S-Y\n天 B-X\n", {}, "a.conll:1: the sentence ends inside an entity of type X"),
    ("a.conll", "好 B-X\n", {"types": ["PER"]}, "a.conll:1: entity type 'X' is none of PER"),
    ("a.conll", " O\n", {}, "a.conll:1: the token is empty"),
    ("a.conll", "好 O\n", {"require": "label"}, "a.conll:1: the row has no label"),
    ("a.csv", "text,label\n好\0,a\n", {}, "a.csv:2: text holds a NUL character at 1"),
    ("a.csv", "text,pair,label\n好,,a\n", {"pair": "pair"}, "a.csv:2: pair is empty"),
    ("a.csv", "text,label\n好,\n", {}, "a.csv:2: label is empty"),
    ("a.csv", "text,label\n好,a|b|a\n", {"require": "labels"}, "a.csv:2: label 'a' is given twice"),
    ("a.csv", "text,label\n好,a||b\n", {"require": "labels"}, "a.csv:2: label is empty"),
    ("a.csv", "text,label\n好,a|c\n", {"require": "labels", "labels": ["a"]}, "a.csv:2: label 'c' is none of a"),
    ("a.jsonl", '{"text": "好"}', {"require": "labels"}, "a.jsonl:1: there is no 'label'"),
    ("a.jsonl", '{"text": "好", "label": {}}', {"require": "labels"}, "a.jsonl:1: label must be a list of labels"),
    ("a.jsonl", '{"text": "好", "label": [true]}', {"require": "labels"}, "a.jsonl:1: label must be a list of labels"),
]


@pytest.mark.parametrize(("name", "content", "options", "sentence"), BAD, ids=[case[3] for case in BAD])
def test_a_bad_row_is_named_by_file_line_and_reason(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], sentence: str
) -> None:
    found = complaint(put(tmp_path / name, content), **options)
    assert found.startswith(sentence)


def test_a_table_cannot_hold_entities(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: a csv file holds no entities; use CoNLL or JSONL"):
        rows_of(put(tmp_path / "a.csv", "text,label\n好,a\n"), require="entities")


def test_rows_of_several_labels_come_as_lists_or_strings_and_may_have_none(tmp_path: Path) -> None:
    wanted = [Row("好", labels=("a", "b")), Row("坏", labels=()), Row("天", labels=("7",))]
    lines = '{"text": "好", "label": ["a", "b"]}\n{"text": "坏", "label": []}\n{"text": "天", "label": [7]}\n'
    assert rows_of(put(tmp_path / "a.jsonl", lines), require="labels") == wanted
    table = "text,label\n好,a; b\n坏,\n天,7\n"
    assert rows_of(put(tmp_path / "a.csv", table), require="labels", separator=";") == wanted


def test_a_row_may_tell_a_label_entities_or_both(tmp_path: Path) -> None:
    lines = '{"text": "好", "label": "a"}\n{"text": "好", "entities": []}\n'
    lines += '{"text": "好", "label": "a", "entities": [[0, 1, "X"]]}\n'
    assert rows_of(put(tmp_path / "a.jsonl", lines)) == [
        Row("好", "a"),
        Row("好", entities=()),
        Row("好", "a", entities=(Entity(0, 1, "X"),)),
    ]


def test_skipped_rows_are_counted_and_listed(tmp_path: Path) -> None:
    content = 'text,label\n好,a\n,a\n"多\n行",b\n坏,c\n,\n'
    report = ReadReport()
    rows = rows_of(put(tmp_path / "a.csv", content), policy="skip", labels=["a", "b"], report=report)
    assert rows == [Row("好", "a"), Row("多\n行", "b")]
    assert (report.rows, report.skipped_count) == (2, 3)
    assert [(error.line, error.reason) for error in report.skipped] == [
        (3, "text is empty"),
        (6, "label 'c' is none of a, b"),
        (7, "text is empty"),
    ]
    assert report.sentences()[0] == f"{tmp_path}/a.csv: 2 rows (csv, utf-8), 3 skipped"
    assert report.sentences()[1] == f"{tmp_path}/a.csv:3: text is empty"


def test_a_bad_quote_costs_only_its_own_record(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", 'text,label\n"坏"的,a\n好,a\n')
    report = ReadReport()
    assert rows_of(path, policy="skip", report=report) == [Row("好", "a")]
    assert [error.line for error in report.skipped] == [2]


def test_a_bad_sentence_is_skipped_whole(tmp_path: Path) -> None:
    path = put(tmp_path / "a.conll", "好 O\n天 I-X\n气 O\n\n真 B-X\n好 I-X\n")
    report = ReadReport()
    rows = rows_of(path, policy="skip", report=report, scheme="BIO")
    assert rows == [Row("真好", entities=(Entity(0, 2, "X"),))]
    assert [error.line for error in report.skipped] == [2]


def test_a_long_list_of_skipped_rows_is_cut_but_counted(tmp_path: Path) -> None:
    report = ReadReport()
    path = put(tmp_path / "a.tsv", "\ta\n" * 1200)
    assert rows_of(path, text=0, label=1, policy="skip", report=report) == []
    assert (report.skipped_count, len(report.skipped)) == (1200, readers.MAX_LISTED)
    assert report.sentences()[-1] == "… and 200 more"


def test_a_field_longer_than_the_limit_is_a_bad_row(tmp_path: Path) -> None:
    long = "好" * (readers.MAX_FIELD + 1)
    for name, content in (("a.csv", f"text,label\n{long},a\n好,a\n"), ("a.tsv", f"text\tlabel\n{long}\ta\n好\ta\n")):
        report = ReadReport()
        assert rows_of(put(tmp_path / name, content), policy="skip", report=report) == [Row("好", "a")]
        assert report.skipped[0].line == 2
        assert "16,777,216" in report.skipped[0].reason


def test_a_field_above_the_standard_limit_of_csv_is_read(tmp_path: Path) -> None:
    long = "好" * 200_000
    assert rows_of(put(tmp_path / "a.csv", f"text,label\n{long},a\n")) == [Row(long, "a")]


pieces = st.sampled_from(
    [*(one.encode() for one in '",:\n\r\t\0 {}[]1O好'), b"\xff", b"\xe5\xa5", b"\xba\xc3", b"B-X", b"I-X", b"S-X"]
) | st.sampled_from([b'"text"', b'"label"', b'{"text": "a", "label": "b"}', b"\r\n"])


@files
@given(content=st.lists(pieces, max_size=40).map(b"".join), skip=st.booleans())
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.conll"])
def test_any_bytes_are_read_or_refused_with_a_line(tmp_path: Path, name: str, content: bytes, skip: bool) -> None:
    numbered = {"text": 0, "label": 1} if name in ("a.csv", "a.tsv") else {}
    report = ReadReport()
    try:
        rows = rows_of(put(tmp_path / name, content), policy="skip" if skip else "error", report=report, **numbered)
    except RowError as error:
        lines = [error.line]
        assert not skip or name == "a.json"
    else:
        lines = [error.line for error in report.skipped]
        assert report.rows == len(rows)
        assert all(row.text.strip() for row in rows)
    assert all(1 <= line <= content.count(b"\n") + 1 for line in lines)
    assert lines == sorted(lines)


# Shapes of good input


def test_columns_can_be_named_numbered_and_paired(tmp_path: Path) -> None:
    named = put(tmp_path / "a.csv", "\ufeffquestion,answer,score\n几点,三点,1\n")
    assert rows_of(named, text="question", pair="answer", label="score") == [Row("几点", "1", "三点")]
    bare = put(tmp_path / "b.csv", "1,几点,三点\n0,谁,我\n")
    assert rows_of(bare, text=1, pair=2, label=0) == [Row("几点", "1", "三点"), Row("谁", "0", "我")]
    with pytest.raises(DataError, match="all columns by name, or all by number"):
        read_file(bare, text=1)
    with pytest.raises(DataError, match="count from 0"):
        read_file(bare, text=-1, label=0)


def test_json_entities_may_be_lists_or_objects_in_any_order(tmp_path: Path) -> None:
    line = '{"text": "张三在北京", "entities": [{"start": 3, "end": 5, "label": "LOC"}, [0, 2, "PER"]]}'
    (row,) = rows_of(put(tmp_path / "a.jsonl", line))
    assert row == Row("张三在北京", entities=(Entity(0, 2, "PER"), Entity(3, 5, "LOC")))


def test_whole_numbers_are_labels_in_json(tmp_path: Path) -> None:
    assert rows_of(put(tmp_path / "a.jsonl", '{"text": "好", "label": 0}')) == [Row("好", "0")]


def test_latin_words_of_a_conll_file_get_a_space_between_them(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- O\n\nBank NN B-ORG\nof IN I-ORG\nChina NN I-ORG\n在 P O\n北京 NN B-LOC\n。 . O\n"
    (row,) = rows_of(put(tmp_path / "a.conll", content))
    assert row.text == "Bank of China在北京。"
    assert [row.text[entity.start : entity.end] for entity in row.entities or ()] == ["Bank of China", "北京"]


def test_single_characters_of_a_conll_file_are_joined_without_spaces(tmp_path: Path) -> None:
    (row,) = rows_of(put(tmp_path / "a.conll", "2 O\n0 O\n2 O\n6 O\n年 O\n\u3000 O\n好 O\n"))
    assert row.text == "2026年\u3000好"


def test_text_is_given_as_it_stands(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "  好\\u2028天\\r\\n ", "label": " a "}')
    assert rows_of(path) == [Row("  好\u2028天\r\n ", "a")]


def test_rows_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    makers: dict[str, Callable[[], str]] = {
        "a.csv": lambda: "text,label\n好,a\n,\n",
        "a.jsonl": lambda: '{"text": "好", "label": "a"}\n{\n',
        "a.conll": lambda: "好 O\n\n天 X-Y\n",
    }
    for name, make in makers.items():
        rows = read_file(put(tmp_path / name, make()))
        assert next(rows).text == "好"
        with pytest.raises(RowError):
            next(rows)


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_file(tmp_path / "gone.csv")
    path = put(tmp_path / "rows.txt", "text,label\n好,a\n")
    with pytest.raises(DataError, match=r"the suffix '\.txt' does not tell the format"):
        read_file(path)
    assert rows_of(path, format="csv") == [Row("好", "a")]
