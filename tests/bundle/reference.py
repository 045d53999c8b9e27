"""What `bundle.encode` does, once more: slow, character by character, and obviously right."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping
from functools import cache

from bundle.encode import CLAUSE_ENDS, SENTENCE_ENDS

# Characters that BERT sets apart as words of their own. The gap before U+2B920 is the library's: extension E begins at
# U+2B820, so these rare ideographs are read as letters of a word.
IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
# A character as the model reads it, and the place in the text that it comes from.
Read = tuple[str, int]


@cache
def is_dropped(character: str) -> bool:
    """Control, format and private characters, and what stands for an unreadable byte."""
    if character in "\t\n\r":
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co")


def is_space(character: str) -> bool:
    return character.isspace()


@cache
def is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


@cache
def is_ideograph(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in IDEOGRAPHS)


def cleaned(text: str) -> list[Read]:
    """The characters that are read, each with its place; spaces stand on both sides of an ideograph."""
    kept: list[Read] = []
    for place, character in enumerate(text):
        if is_ideograph(character):
            kept += [(" ", place), (character, place), (" ", place)]
        elif not is_dropped(character):
            kept.append((" " if is_space(character) else character, place))
    return kept


def decomposed(kept: list[Read]) -> list[Read]:
    """Letters and accents apart; of several accents, each goes before those of a higher class.

    The library gives an accent that moves the place of the one which stood there. This shows where an accent is kept
    as a letter, which is a mark that takes a room of its own (U+302E, a tone mark of Korean).
    """
    letters = [
        (letter, number == 0)
        for character, _ in kept
        for number, letter in enumerate(unicodedata.normalize("NFD", character))
    ]
    for end in range(len(letters)):  # insertion sort, as the Unicode standard describes it
        while end and 0 < unicodedata.combining(letters[end][0]) < unicodedata.combining(letters[end - 1][0]):
            letters[end - 1], letters[end] = letters[end], letters[end - 1]
            end -= 1
    places = iter([place for _, place in kept])
    read: list[Read] = []
    for letter, begins in letters:
        read.append((letter, next(places) if begins else read[-1][1]))
    return read


def folded(kept: list[Read]) -> list[Read]:
    """Without accents, in lower case."""
    return [
        (lower, place)
        for letter, place in decomposed(kept)
        if unicodedata.category(letter) != "Mn"
        for lower in letter.lower()
    ]


def words_of(text: str, lowercase: bool) -> list[list[Read]]:
    """The words of a text; punctuation and ideographs are words of one character."""
    kept = cleaned(text)
    words: list[list[Read]] = [[]]
    for letter, place in folded(kept) if lowercase else kept:
        if letter == " ":
            words.append([])
        elif is_punctuation(letter):
            words += [[(letter, place)], []]
        else:
            words[-1].append((letter, place))
    return [word for word in words if word]


def pieces_of(word: list[Read], vocabulary: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """(id, start, end) of a word's pieces: the longest that fits, again and again; if none does, it is unknown."""
    unknown = [(vocabulary["[UNK]"], word[0][1], word[-1][1] + 1)]
    if len(word) > 100:
        return unknown
    found = []
    begin = 0
    while begin < len(word):
        for end in range(len(word), begin, -1):
            piece = ("##" if begin else "") + "".join(letter for letter, _ in word[begin:end])
            if piece in vocabulary:
                found.append((vocabulary[piece], word[begin][1], word[end - 1][1] + 1))
                begin = end
                break
        else:
            return unknown
    return found


def tokens_of(text: str, vocabulary: Mapping[str, int], lowercase: bool) -> list[tuple[int, int, int]]:
    """(id, start, end) of every token of a text, code points, end-exclusive."""
    return [piece for word in words_of(text, lowercase) for piece in pieces_of(word, vocabulary)]


def seam_of(text: str, spans: list[tuple[int, int]], last: int) -> str:
    """What stands where a window that ends before token ``last`` is cut; empty inside a character or a number."""
    left, right = spans[last - 1][1], spans[last][0]
    if re.fullmatch(r"[0-9A-Za-z][\x00-\x7f][0-9A-Za-z]", text[max(left - 2, 0) : right + 1]) and left == right:
        return ""
    seam = text[left - 1 : right] if right >= left else ""
    if not re.fullmatch(r"[\u2e80-\uabff\U00020000-\U0010ffff]{2}", text[left - 1] + text[right]):
        seam = re.sub(r"[ \t]", "", seam)
    return seam


def rank_of_cut(text: str, spans: list[tuple[int, int]], last: int, continues: bool) -> int:
    """How good it is to end a window before token ``last``: 3 a sentence ends, 2 a clause, 1 a word begins, 0."""
    seam = set(seam_of(text, spans, last))
    if seam & SENTENCE_ENDS:
        return 3
    if seam & CLAUSE_ENDS:
        return 2
    return 0 if continues else 1


def plan_of(ranks: list[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """The windows of a text as token ranges.

    Args:
        ranks: of each place between two tokens, how good it is to cut there; as many as there are tokens.
        room: tokens of a window.
    """
    windows = [(0, min(room, len(ranks)))]
    while windows[-1][1] < len(ranks):
        first, full = windows.pop()
        # The last quarter of the window, as far as the next window still begins after this one.
        places = [place for place in range(full - room // 4, full + 1) if place - overlap > first]
        cut = max(places, key=lambda place: (ranks[place], place))
        windows += [(first, cut), (cut - overlap, min(cut - overlap + room, len(ranks)))]
    return windows
