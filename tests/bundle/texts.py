"""Texts that are hard to read: all of Unicode, and often what goes wrong in practice."""

from __future__ import annotations

from hypothesis import strategies as st

# Characters on which Python's tables (Unicode 14) and those inside the tokenizers library differ. Its categories are
# those of Unicode 8, so it takes later accents, format characters and punctuation for letters, and a few characters
# (U+166D, U+1734, U+111C9) for what they were then; its lower case is that of Unicode 16 (U+1C89, U+A7CB …). Two later
# letters are decomposed by newer tables only (U+11938). `test_tokens` holds this list against the library: it names no
# character on which the two agree, and lacks none on which they differ.
_DIFFERING = """
61d 7fd 890-891 898-89f 8ca-8e2 9fd-9fe a76 afa-aff b55 c04 c3c c77 c84 d00 d3b-d3c d81 eba 166d 1734 180f 1885-1886
1abf-1ace 1b7d-1b7e 1c89 1df6-1dfb 2e43-2e4f 2e52-2e5d a7cb-a7cc a7da a7dc a82c a8c5 a8ff a9bd 10d24-10d27 10d50-10d65
10eab-10ead 10f46-10f50 10f55-10f59 10f82-10f89 11070 11073-11074 110c2 110cd 111c9 111cf 1123e 1133b 11438-1143f
11442-11444 11446 1144b-1144f 1145a-1145b 1145d-1145e 11660-1166c 116b9 1182f-11837 11839-1183b 11938 1193b-1193c 1193e
11943-11946 119d4-119d7 119da-119db 119e0 119e2 11a01-11a0a 11a33-11a38 11a3b-11a47 11a51-11a56 11a59-11a5b 11a8a-11a96
11a98-11a9c 11a9e-11aa2 11c30-11c36 11c38-11c3d 11c3f 11c41-11c45 11c70-11c71 11c92-11ca7 11caa-11cb0 11cb2-11cb3
11cb5-11cb6 11d31-11d36 11d3a 11d3c-11d3d 11d3f-11d45 11d47 11d90-11d91 11d95 11d97 11ef3-11ef4 11ef7-11ef8 11fff
12ff1-12ff2 13430-13438 16e97-16e9a 16f4f 16fe2 16fe4 1cf00-1cf2d 1cf30-1cf46 1e000-1e006 1e008-1e018 1e01b-1e021
1e023-1e024 1e026-1e02a 1e130-1e136 1e2ae 1e2ec-1e2ef 1e944-1e94a 1e95e-1e95f
"""
DIFFERING = frozenset(
    chr(point)
    for part in _DIFFERING.split()
    for point in range(int(part.partition("-")[0], 16), int(part.rpartition("-")[2], 16) + 1)
)

HARD = (
    # Emoji with modifiers and joiners, variation selectors, flags, key caps, a flag of tag characters.
    *(
        "👍🏽",
        "👨‍👩‍👧",
        "👩🏿‍🚀",
        "❤️",
        "🏳️‍🌈",
        "🇨🇳",
        "1️⃣",
        "🏴\U000e0067\U000e0062\U000e007f",
        "😀",
        "\u200d",
        "\ufe0f",
        "🏽",
    ),
    # Combining marks: after a letter, several, out of order, alone, enclosing, spacing.
    *(
        "e\u0301",
        "a\u0315\u0300",
        "o\u0328\u0304",
        "\u0301",
        "a\u20dd",
        "क\u093f",
        "ก\u0e33",
        "\u302e",
        "\U0001d16d",
        "न\u093c",
    ),
    # Full-width forms and ideographic space.
    *("ＡＢ", "１２", "，", "。", "！", "．", "\u3000", "ｱﾞ", "￥"),
    # White space, repeated and mixed; line ends; what BERT calls control characters.
    *(
        " ",
        "  ",
        "\t",
        "\t \t",
        "\n",
        "\r\n",
        "\r",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\xa0",
        "\u2028",
        "\u2029",
        "\x01",
        "\x7f",
    ),
    # Zero width and format characters.
    *("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u202e", "\u061c", "\ufffd", "\ufff9"),
    # The last and first character of each width in UTF-8 and UTF-16.
    *("\x7f\x80", "\u07ff\u0800", "\uffff\U00010000", "\U0010ffff"),
    # Lower case, decomposition or compatibility forms of another length.
    *(
        "İ",
        "ß",
        "ẞ",
        "ﬁ",
        "ﬃ",
        "㍿",
        "ŉ",
        "ΐ",
        "Å",
        "ǆ",
        "ς",
        "Σ",
        "Ⅷ",
        "½",
        "≠",
        "\u1fef",
        "\u037e",
        "가",
        "한",
        "뷁",
        "豈",
    ),
    # Words of several scripts, in and out of the vocabulary; numbers.
    *("hello", "helloworld", "ab", "abcd", "Straße", "naïve", "Привет", "שלום", "مرحبا", "日本", "ひらがな", "ไทย"),
    *(
        "北京",
        "上海",
        "今天",
        "。",
        "，",
        ", ",
        ". ",
        "3.14",
        "1,000",
        "!",
        "?",
        "…",
        "—",
        "don't",
        "a" * 101,
        "𠮷",
        "𝒳",
    ),
)

# All of Unicode but lone surrogates, which `encode` refuses.
CHARACTERS = st.characters(exclude_categories=["Cs"])
AGREED = st.characters(exclude_categories=["Cs"], exclude_characters=DIFFERING)
_snippets = st.lists(st.sampled_from(HARD), min_size=1, max_size=12)


def _mixed(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of hard snippets, of hard characters in any order, and of any characters."""
    return st.one_of(
        _snippets.map("".join),
        st.text(characters, min_size=1, max_size=25),
        st.text("".join(HARD), min_size=1, max_size=25),
        st.tuples(st.text(characters, max_size=6), _snippets, st.text(characters, max_size=6)).map(
            lambda parts: parts[0] + parts[2].join(parts[1])
        ),
    )


# Any text; and any text on which both tables agree.
ANY_TEXT = _mixed(CHARACTERS)
AGREED_TEXT = _mixed(AGREED)
# Longer text, whose windows matter more than its characters: Chinese and Latin words, ends of sentences and clauses.
PROSE = st.lists(
    st.sampled_from(
        [
            "今",
            "天",
            "很好",
            "北京",
            "。",
            "，",
            "！",
            "”",
            " ",
            "\n",
            ". ",
            ", ",
            "abcd",
            "hello",
            "helloworldcdcd",
            "3.1",
            "😀",
        ]
    ),
    min_size=1,
    max_size=80,
).map("".join)
