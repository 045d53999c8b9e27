"""Tokens and where they stand in the text, against a slow reference, for all of Unicode."""

from __future__ import annotations

import unicodedata

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bundle.encode import Encoder, assert_covered, wordpiece_tokenizer
from tests.bundle.reference import cleaned, folded, tokens_of
from tests.bundle.samples import PIECES, make_encoder, make_spec
from tests.bundle.texts import AGREED_TEXT, ANY_TEXT, DIFFERING
from tests.properties import cases

# More than the small vocabulary knows: jamo, accented and folded letters, emoji and their parts, other scripts.
RICH = list(
    dict.fromkeys(
        [
            *PIECES,
            *(prefix + letter for letter in "adehilmnorstvxåßﬁςσ" for prefix in ("", "##")),
            *(
                "##llo",
                "##ss",
                "##ra",
                "A",
                "B",
                "##B",
                "##ï",
                "é",
                "##\u0301",
                "##ve",
                "привет",
                "##т",
                "ᄒ",
                "##ᅡ",
                "##ᆫ",
                "ᄀ",
            ),
            *(
                "👍",
                "##🏽",
                "👨",
                "##👩",
                "##👧",
                "😀",
                "##😀",
                "🇨",
                "##🇳",
                "日",
                "本",
                "豈",
                "𠮷",
                "=",
                "!",
                "?",
                "…",
                "—",
                "'",
                "`",
            ),
        ]
    )
)
VOCABULARY = {piece: number for number, piece in enumerate(RICH)}
ENCODERS = {
    lowercase: Encoder(wordpiece_tokenizer(RICH, lowercase=lowercase), make_spec()) for lowercase in (True, False)
}


def is_one_of_thousands(character: str) -> bool:
    """Ideographs, syllables of Korean, and characters that mean nothing yet or nothing to others."""
    name = unicodedata.name(character, "")
    return unicodedata.category(character) in ("Cn", "Co") or name.startswith(("CJK UNIFIED", "HANGUL SYLLABLE"))


# Every character; of those that are alike by the thousand, one in 97.
EVERY = [
    character
    for character in map(chr, range(0x110000))
    if unicodedata.category(character) != "Cs" and (ord(character) % 97 == 0 or not is_one_of_thousands(character))
]


def tokens_found(text: str, lowercase: bool) -> list[tuple[int, int, int]]:
    ids, spans = ENCODERS[lowercase].tokenize(text)
    return list(zip(ids.tolist(), *spans.T.tolist(), strict=True)) if len(ids) else []


def agrees(text: str, lowercase: bool) -> bool:
    """Whether the library reads the letters of the slow reference, and cuts them into the same tokens."""
    kept = cleaned(text)
    letters = "".join(letter for letter, _ in (folded(kept) if lowercase else kept))
    read = ENCODERS[lowercase].tokenizer.normalizer.normalize_str(text)
    return bool(letters == read) and tokens_found(text, lowercase) == tokens_of(text, VOCABULARY, lowercase)


@cases(2500)
@given(AGREED_TEXT, st.booleans())
def test_tokens_and_their_places_are_those_of_the_slow_reference(text: str, lowercase: bool) -> None:
    assert tokens_found(text, lowercase) == tokens_of(text, VOCABULARY, lowercase)
    assert agrees(text, lowercase)


def test_every_character_is_read_as_the_reference_reads_it_but_for_those_of_newer_tables() -> None:
    characters = [character for character in EVERY if character not in DIFFERING]
    for begin in range(0, len(characters), 500):
        some = characters[begin : begin + 500]
        if not agrees(" ".join(f"a{character}b" for character in some), True):
            assert not [character for character in some if not agrees(f"a{character}b", True)]
    assert not [character for character in DIFFERING if agrees(f"a{character}b", True)], "these do not differ"


def test_no_character_is_lost_wherever_it_stands(encoder: Encoder) -> None:
    characters = sorted({*EVERY, *DIFFERING})
    for begin in range(0, len(characters), 500):
        text = "".join(f"a{character} {character}" for character in characters[begin : begin + 500])
        assert_covered(text, encoder.tokenize(text)[1])


def test_a_mark_that_normalization_moves_is_not_lost(encoder: Encoder) -> None:
    assert encoder.encode("e\u0301\u302e").covered == 1


@cases(1000)
@given(ANY_TEXT)
def test_tokens_stand_in_order_inside_the_text(text: str) -> None:
    _, spans = make_encoder().tokenize(text)
    assert_covered(text, spans)
    assert (spans[:, 0] < spans[:, 1]).all() and (spans >= 0).all() and (spans <= len(text)).all()
    assert (np.diff(spans, axis=0) >= 0).all()
