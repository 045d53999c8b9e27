"""Rows that are derived from real ones: several labels, pairs, two heads."""

from __future__ import annotations

from bundle.rows import Entity, Row
from finetune.data.named import mention_rows, title_rows


def test_mentions_are_the_types_of_a_sentences_entities() -> None:
    rows = [
        Row("张三在北京见李四", entities=(Entity(0, 2, "PER"), Entity(3, 5, "LOC"), Entity(6, 8, "PER"))),
        Row("今天很好", entities=()),
    ]
    assert mention_rows(rows) == [Row(rows[0].text, labels=("LOC", "PER")), Row(rows[1].text, labels=())]


def test_each_article_is_paired_with_its_own_title_and_with_the_most_alike_other_one() -> None:
    articles = ["股市大涨三天\n甲", "股市大跌三天\n乙", "球队赢了比赛\n丙", "球队输了比赛\n丁", "没有正文\n"]
    rows = title_rows([Row(text, "neutral") for text in articles])
    own = [(row.text, row.pair) for row in rows if row.label == "own"]
    other = {row.pair: row.text for row in rows if row.label == "other"}
    assert own == [("股市大涨三天", "甲"), ("股市大跌三天", "乙"), ("球队赢了比赛", "丙"), ("球队输了比赛", "丁")]
    assert other == {"甲": "股市大跌三天", "乙": "股市大涨三天", "丙": "球队输了比赛", "丁": "球队赢了比赛"}


def test_a_title_that_two_articles_share_is_never_called_another_ones() -> None:
    rows = title_rows([Row("同一个题目\n甲"), Row("同一个题目\n乙")])
    assert {row.label for row in rows} <= {"own"}
