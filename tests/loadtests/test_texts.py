"""What is sent: pools, the seeded sequence, bodies, files that cannot be used."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.arrivals import arrival_times
from loadtests.errors import TextsUnusable
from loadtests.texts import Mix, read_mix, sentences


def mix_of(file: Path, seed: int = 13, short_share: float = 0.7, max_chars: int = 5000, pairs: bool = False) -> Mix:
    return read_mix(file, short_share=short_share, seed=seed, max_chars=max_chars, pairs=pairs)


def first(mix: Mix, who: int | str, count: int = 200) -> list[tuple[str, int]]:
    return [(ask.kind, ask.place) for ask in itertools.islice(mix.stream(who), count)]


def test_the_same_seed_and_user_give_the_same_requests(articles: Path) -> None:
    assert first(mix_of(articles), 3) == first(mix_of(articles), 3)


def test_users_and_seeds_differ_from_each_other(articles: Path) -> None:
    sequences = [first(mix_of(articles, seed), user) for seed in (13, 14) for user in (0, 1, "arrivals")]
    assert all(a != b for a, b in itertools.combinations(sequences, 2))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_short_requests_is_as_asked(articles: Path, share: float) -> None:
    kinds = [kind for kind, _ in first(mix_of(articles, short_share=share), 0, 2000)]
    assert kinds.count("short") / len(kinds) == pytest.approx(share, abs=0.05)


def test_a_short_request_is_one_sentence_and_a_long_one_is_a_whole_text(articles: Path) -> None:
    mix = mix_of(articles)
    texts = [json.loads(line)["text"] for line in articles.read_text(encoding="utf-8").splitlines()]
    assert [ask.text for ask in mix.long] == texts
    assert len(mix.short) == sum(20 + n for n in range(10))
    assert all(ask.text.endswith("。") and ask.text.count("。") == 1 for ask in mix.short)


def test_sentences_are_neither_headings_nor_whole_paragraphs() -> None:
    assert sentences("新华社\n今天的股市大幅上涨了三个百分点！" + "长" * 200 + "。好。") == [
        "今天的股市大幅上涨了三个百分点！"
    ]


def test_headlines_without_a_sentence_are_short_requests_themselves(write_texts: Callable[..., Path]) -> None:
    mix = mix_of(write_texts("短标题", "又一个"))
    assert [ask.text for ask in mix.short] == ["短标题", "又一个"]
    assert {ask.kind for ask in mix.short} == {"short"}


def test_texts_that_are_too_long_are_left_out_and_counted(write_texts: Callable[..., Path]) -> None:
    mix = mix_of(write_texts("一" * 20, "一" * 21), max_chars=20)
    assert (len(mix.long), mix.left_out) == (1, 1)


def test_bodies_are_what_the_native_route_reads(write_texts: Callable[..., Path]) -> None:
    file = write_texts("今天的股市大幅上涨了。然后又跌了下来。", pair="今天的股市怎么样了呢？我不知道。")
    single, pair = mix_of(file), mix_of(file, pairs=True)
    assert json.loads(single.long[0].body) == {"inputs": single.long[0].text}
    assert json.loads(pair.short[0].body) == {
        "inputs": [{"text": "今天的股市大幅上涨了。", "pair": "今天的股市怎么样了呢？"}]
    }
    assert pair.long[0].chars == len(pair.long[0].text) + len("今天的股市怎么样了呢？我不知道。")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "好的"}\n{"text": ', ":2: not JSON"),
        ('{"text": "好的"}\n\n{"label": "a"}\n', ':3: has no "text"'),
        ('["text"]\n', ':1: has no "text"'),
        ('{"text": "  "}\n', ':1: has no "text"'),
        ("\n", "holds no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(TextsUnusable) as caught:
        mix_of(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


def test_a_row_without_a_pair_is_refused_where_the_model_compares_two(articles: Path) -> None:
    with pytest.raises(TextsUnusable, match=':1: has no "pair"'):
        mix_of(articles, pairs=True)


def test_a_missing_or_undecodable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextsUnusable, match="No such file"):
        mix_of(tmp_path / "none.jsonl")
    (tmp_path / "gbk.jsonl").write_bytes('{"text": "你好"}'.encode("gb18030"))
    with pytest.raises(TextsUnusable, match="cannot be read"):
        mix_of(tmp_path / "gbk.jsonl")


def test_steady_arrivals_are_evenly_spaced() -> None:
    assert arrival_times(4, 1.0, arrivals="steady", seed=1, limit=100) == [0.0, 0.25, 0.5, 0.75]


@given(
    st.floats(0.5, 500), st.floats(0.01, 5), st.sampled_from(["steady", "poisson"]), st.integers(), st.integers(1, 99)
)
def test_arrivals_ascend_inside_the_run_and_repeat(rate: float, span: float, kind: str, seed: int, limit: int) -> None:
    def draw() -> list[float]:
        return arrival_times(rate, span, arrivals=kind, seed=seed, limit=limit)  # type: ignore[arg-type]

    times = draw()
    assert times == draw() == sorted(times)
    assert len(times) <= limit
    assert all(0 <= moment < span for moment in times)


def test_poisson_arrivals_keep_the_rate_on_average() -> None:
    assert len(arrival_times(100, 100.0, arrivals="poisson", seed=13, limit=10**6)) == pytest.approx(10_000, rel=0.05)
