"""Length buckets of a Triton repository: which lengths, how its models are called, where they are written down.

Triton's batcher merges calls of equal shape only, so the native backend gets a model for each of a few window lengths,
and callers pad to the next one. The widest model has the name that a model without buckets would have, and names the
others in the parameter `PARAMETER` of its configuration; they name it in `OWNER`. `export` writes that, `serving` reads
it, from Triton or from the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PARAMETER, OWNER = "buckets", "bucket_of"
_LINE = r'key: "%s" value \{ string_value: "(%s)" \}'


def bucket_names(name: str, buckets: Sequence[int]) -> dict[int, str]:
    """Tokens of a window → the model that reads windows of this length, ascending; the widest comes last.

    Without buckets one model reads windows of every length, for which 0 stands.

    >>> bucket_names("news", (128, 32))
    {32: 'news_32', 128: 'news'}
    >>> bucket_names("news", ())
    {0: 'news'}
    """
    if not buckets:
        return {0: name}
    return {tokens: name if tokens == max(buckets) else f"{name}_{tokens}" for tokens in sorted(buckets)}


def written(buckets: Sequence[int]) -> str:
    """The lengths as the parameter's value."""
    return ",".join(str(tokens) for tokens in sorted(buckets))


def read(value: str) -> tuple[int, ...]:
    """The lengths that a parameter's value names, ascending.

    Raises:
        ValueError: it is none.
    """
    return tuple(sorted(int(part) for part in value.split(",")))


def buckets_in(config: str) -> tuple[int, ...]:
    """The lengths that the text of a ``config.pbtxt`` names; none where the model reads every length."""
    found = re.search(_LINE % (PARAMETER, "[0-9,]+"), config)
    return read(found[1]) if found else ()


def owner_in(config: str) -> str:
    """The model of which the text of a ``config.pbtxt`` is a bucket; empty where it is none."""
    found = re.search(_LINE % (OWNER, r'[^"]+'), config)
    return found[1] if found else ""
