"""The errors of the whole project. A constructor takes the facts and writes the sentence.

SlipwayError
├── DataError            a file of rows, a named data set or base weights cannot be used
│   ├── RowError             one row: file, line, reason
│   └── AssetUnavailable     pip or the hub could not bring it; says the offline way out
├── RecipeError          a recipe's key or value is wrong: file, key, allowed values
├── TrainingDiverged     the loss of a training is no number any more
├── BundleError          a bundle folder is missing, incomplete or not what its manifest says
│   ├── ManifestInvalid      bundle.json does not follow the schema
│   ├── ChecksumMismatch     a file differs from its recorded sha256
│   └── GoldenMismatch       the live model does not reproduce the golden rows
├── RulesInvalid         a rule file of a served model is wrong: file, rule, reason
├── KeysInvalid          the file of API keys is wrong: file, reason
├── ExportError          a conversion went wrong
│   ├── ConversionFailed     a converter failed or crashed
│   ├── FusionMissing        the graph did not fuse as its architecture demands
│   └── ParityFailed         the converted graph does not compute what its source does
├── GpuMissing           a GPU was asked for and cannot be used here: all that is missing
├── RequestError         the caller can mend it: which field, which limit
│   ├── MalformedRequest     the body, or a line of a stream, is not JSON
│   ├── InvalidText          not text that can be encoded, or empty
│   ├── LimitExceeded        a count or a size above its limit
│   ├── TextTooLong          more windows than max_windows
│   ├── BodyTooSlow          the body did not arrive in time
│   ├── NoForm               a dialect has no words for what this model answers
│   └── ModelUnknown         no such model
│       └── VersionUnknown       the model has no such version
├── VersionRefused       a version cannot be loaded, promoted or unloaded as things stand: the reason
├── AccessError          who asks may not
│   ├── KeyMissing           a key is needed and none was sent
│   ├── KeyUnknown           what was sent is no key of this server
│   ├── AdminOnly            the key is not an administrator's
│   └── AdminOff             no administrator's key is configured, so nobody may
├── BusyError            not now; tells when a retry makes sense
│   ├── Overloaded           as much work is admitted as may be, or the answer could not be in time
│   └── RateLimited          this key has asked for more than its rate
├── ClientGone           nobody waits for the answer any more
├── EngineError          the engine cannot answer now
│   ├── EngineUnavailable    not reachable, not ready or died
│   └── EngineTimeout        no answer before the deadline
└── CoverageLost         a window plan or a tokenizer lost part of the text: a bug, never the caller's fault
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class SlipwayError(Exception):
    """Root of the tree; catching it catches every error that Slipway raises on purpose."""


class DataError(SlipwayError):
    """A file of rows, a named data set or base weights cannot be used."""


class RowError(DataError):
    """One row of a data file is unusable.

    >>> str(RowError("train.tsv", 7, "label is empty"))
    'train.tsv:7: label is empty'
    """

    def __init__(self, file: str | Path, line: int, reason: str) -> None:
        self.file, self.line, self.reason = str(file), line, reason
        super().__init__(f"{file}:{line}: {reason}")


class AssetUnavailable(DataError):
    """A named asset could not be brought here.

    Args:
        asset: its name in a recipe.
        reason: what went wrong, in one sentence.
        ways_out: what the user can do without a network, one sentence each.
    """

    def __init__(self, asset: str, reason: str, ways_out: Sequence[str] = ()) -> None:
        self.asset, self.reason, self.ways_out = asset, reason, tuple(ways_out)
        lines = [f"{asset}: {reason}"]
        lines += [f"  {number}. {way}" for number, way in enumerate(ways_out, 1)]
        super().__init__("\n".join(lines))


class RecipeError(SlipwayError):
    """A recipe is wrong.

    Args:
        file: the recipe's path.
        key: dotted key, such as ``train.learning_rate``; empty when the file as a whole is wrong.
        reason: what is wrong with it.
        allowed: the values (or keys) that would be right, where they can be listed.
    """

    def __init__(self, file: str | Path, key: str, reason: str, allowed: Sequence[str] = ()) -> None:
        self.file, self.key, self.reason, self.allowed = str(file), key, reason, tuple(allowed)
        where = f"{file}: {key}: " if key else f"{file}: "
        hint = f" (allowed: {', '.join(allowed)})" if allowed else ""
        super().__init__(f"{where}{reason}{hint}")


class TrainingDiverged(SlipwayError):
    """The loss of a training is NaN or infinite; going on would train nothing.

    >>> str(TrainingDiverged(7, float("nan")))[:34]
    'the loss is nan at step 7: a learn'
    """

    def __init__(self, step: int, loss: float) -> None:
        self.step, self.loss = step, loss
        super().__init__(
            f"the loss is {loss} at step {step:,}: a learning rate that is too high is the usual cause. Lower "
            "train.learning_rate and let train.clip be 1"
        )


class BundleError(SlipwayError):
    """A bundle folder is missing, incomplete or not what its manifest says."""


class ManifestInvalid(BundleError):
    """``bundle.json`` does not follow the schema."""

    def __init__(self, file: str | Path, reason: str) -> None:
        self.file, self.reason = str(file), reason
        super().__init__(f"{file}: {reason}")


class ChecksumMismatch(BundleError):
    """A file differs from the checksum that the manifest recorded."""

    def __init__(self, file: str | Path, expected: str, found: str) -> None:
        self.file, self.expected, self.found = str(file), expected, found
        super().__init__(
            f"{file}: its sha256 is {found[:16]}…, bundle.json says {expected[:16]}…; "
            "copy the bundle again or rerun the stage that wrote it"
        )


class GoldenMismatch(BundleError):
    """The live model does not reproduce the golden rows that travel with it."""

    def __init__(self, bundle: str, artifact: str, reason: str) -> None:
        self.bundle, self.artifact, self.reason = bundle, artifact, reason
        super().__init__(f"{bundle}/{artifact}: golden rows do not match: {reason}")


class RulesInvalid(SlipwayError):
    """A rule file is wrong.

    Args:
        file: its path.
        rule: the rule's name or its place in the file; empty when the file as a whole is wrong.
    """

    def __init__(self, file: str | Path, rule: str, reason: str) -> None:
        self.file, self.rule, self.reason = str(file), rule, reason
        super().__init__(f"{file}: {rule}: {reason}" if rule else f"{file}: {reason}")


class KeysInvalid(SlipwayError):
    """The file of API keys, or a hash in the environment, is wrong."""

    def __init__(self, file: str | Path, reason: str) -> None:
        self.file, self.reason = str(file), reason
        super().__init__(f"{file}: {reason}")


class ExportError(SlipwayError):
    """A conversion went wrong; nothing was published."""


class ConversionFailed(ExportError):
    """A converter failed or crashed."""

    def __init__(self, step: str, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(f"{step}: {reason}")


class FusionMissing(ExportError):
    """The graph did not fuse as its architecture demands."""

    def __init__(self, expected: dict[str, int], found: dict[str, int]) -> None:
        self.expected, self.found = expected, found
        broken = [f"{op}: {found.get(op, 0)} of {count}" for op, count in expected.items() if found.get(op, 0) != count]
        super().__init__("the graph did not fuse: " + ", ".join(broken))


class ParityFailed(ExportError):
    """The converted graph does not compute what its source does."""

    def __init__(self, artifact: str, source: str, reason: str) -> None:
        self.artifact, self.source, self.reason = artifact, source, reason
        super().__init__(f"{artifact} does not compute what {source} does: {reason}")


class GpuMissing(SlipwayError):
    """A GPU was asked for and cannot be used here.

    >>> str(GpuMissing(["no NVIDIA device (/dev/nvidia0)", "no CUDA driver (libcuda.so.1)"]))
    'a GPU was asked for and cannot be used here: no NVIDIA device (/dev/nvidia0); no CUDA driver (libcuda.so.1)'
    """

    def __init__(self, missing: Sequence[str]) -> None:
        self.missing = tuple(missing)
        super().__init__(f"a GPU was asked for and cannot be used here: {'; '.join(missing)}")


class RequestError(SlipwayError):
    """The caller can mend the request.

    Attributes:
        field: where in the request, such as ``inputs[3].text``.
        limit: the limit that was passed, or None.
        value: what the request had, or None.
    """

    def __init__(self, field: str, sentence: str, *, limit: int | None = None, value: int | None = None) -> None:
        self.field, self.limit, self.value = field, limit, value
        super().__init__(sentence)


class MalformedRequest(RequestError):
    """The body of a request, or a line of a stream, is not JSON.

    >>> str(MalformedRequest("line", "EOF while parsing an object"))
    'the line is not JSON: EOF while parsing an object'
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, f"the {field} is not JSON: {reason}")


class InvalidText(RequestError):
    """A text is empty or cannot be encoded."""


class LimitExceeded(RequestError):
    """A count or a size is above its limit."""

    def __init__(self, field: str, what: str, value: int, limit: int) -> None:
        self.what = what
        super().__init__(field, f"{field} has {value} {what}; the limit is {limit}", limit=limit, value=value)


class TextTooLong(RequestError):
    """A text needs more windows than the model's ``max_windows``."""

    def __init__(self, field: str, tokens: int, windows: int, limit: int) -> None:
        self.tokens, self.windows = tokens, windows
        super().__init__(
            field,
            f"{field} has {tokens} tokens and needs {windows} windows; the limit is {limit}. "
            'Send a shorter text, or "truncate": true to have only the first windows read',
            limit=limit,
            value=windows,
        )


class BodyTooSlow(RequestError):
    """A request's body did not arrive in time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__("body", f"the body did not arrive within {seconds:g} s; send a smaller one, or faster")


class NoForm(RequestError):
    """A dialect has no words for what this model answers, such as entities where only labels can be said."""

    def __init__(self, dialect: str, model: str, task: str, instead: str) -> None:
        self.dialect, self.model, self.task = dialect, model, task
        super().__init__("model", f"{dialect} has no form for the answers of {model!r} ({task}); {instead}")


class ModelUnknown(RequestError):
    """No such model is served here."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        super().__init__("model", f"there is no model {name!r}; served here: {', '.join(known) or 'none'}")


class VersionUnknown(ModelUnknown):
    """The model is served, but there is no such version of it.

    Args:
        known: the versions that there are.
        where: which ones these are.

    >>> str(VersionUnknown("news", "9", ["1", "2"]))
    "there is no version 9 of 'news'; served here: 1, 2"
    """

    def __init__(self, name: str, version: str, known: Sequence[str], where: str = "served here") -> None:
        self.name, self.version, self.known = name, version, tuple(known)
        RequestError.__init__(
            self, "version", f"there is no version {version} of {name!r}; {where}: {', '.join(known) or 'none'}"
        )


class VersionRefused(SlipwayError):
    """A version cannot be loaded, promoted or unloaded as things stand; what answered before goes on answering."""

    def __init__(self, name: str, version: int, reason: str) -> None:
        self.name, self.version, self.reason = name, version, reason
        super().__init__(f"version {version} of {name!r} is refused: {reason}")


class AccessError(SlipwayError):
    """Who asks may not."""


class KeyMissing(AccessError):
    """A key is needed and none was sent."""

    def __init__(self) -> None:
        super().__init__("this needs a key; send the header Authorization: Bearer KEY")


class KeyUnknown(AccessError):
    """What was sent is no key of this server."""

    def __init__(self) -> None:
        super().__init__("the key in the header Authorization is not known here")


class AdminOnly(AccessError):
    """The key is not an administrator's."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the key {name!r} may ask for predictions; this needs an administrator's key")


class AdminOff(AccessError):
    """No administrator's key is configured, so nobody may."""

    def __init__(self) -> None:
        super().__init__("this server has no administrator's key, so its admin routes are off")


class BusyError(SlipwayError):
    """Not now.

    Attributes:
        retry_after: seconds after which a retry makes sense.
        reason: in a word, for counting.
    """

    def __init__(self, sentence: str, retry_after: float, reason: str) -> None:
        self.retry_after, self.reason = retry_after, reason
        super().__init__(sentence)


class Overloaded(BusyError):
    """As much work is admitted as may be (``full``), or the answer could not be in time (``late``).

    >>> str(Overloaded("news", "131,072 tokens are admitted, the limit is 131,072", 3.2))
    "'news' is overloaded: 131,072 tokens are admitted, the limit is 131,072"
    """

    def __init__(self, model: str, why: str, retry_after: float, reason: str = "full") -> None:
        self.model = model
        super().__init__(f"{model!r} is overloaded: {why}", retry_after, reason)


class RateLimited(BusyError):
    """A key has asked for more than its rate."""

    def __init__(self, name: str, rate: float, retry_after: float) -> None:
        self.name, self.rate = name, rate
        super().__init__(f"the key {name!r} may ask for {rate:g} texts a second, and has", retry_after, "rate")


class ClientGone(SlipwayError):
    """Nobody waits for the answer any more; what was not at the engine yet is not computed."""

    def __init__(self) -> None:
        super().__init__("the client has gone away")


class EngineError(SlipwayError):
    """The engine cannot answer now."""


class EngineUnavailable(EngineError):
    """The engine is not reachable, not ready or died.

    Args:
        retry_after: seconds after which a retry makes sense.
    """

    def __init__(self, reason: str, retry_after: float = 1.0) -> None:
        self.reason, self.retry_after = reason, retry_after
        super().__init__(reason)


class EngineTimeout(EngineError):
    """There was no answer before the deadline.

    Args:
        seconds: that the request had.
        retry_after: seconds after which a retry makes sense.
    """

    def __init__(self, seconds: float, retry_after: float = 1.0) -> None:
        self.seconds, self.retry_after = seconds, retry_after
        super().__init__(f"there was no answer within {seconds:g} s")


class CoverageLost(SlipwayError):
    """Part of a text is in no window: a bug in a tokenizer or in the window plan, never the caller's fault."""

    def __init__(self, position: int, character: str) -> None:
        self.position, self.character = position, character
        super().__init__(f"code point {position} (U+{ord(character):04X}) is in no token")
