"""How is a model best run on this machine? ``python -m export plan`` measures it for two aims, and the manifest tells.

A candidate is a form of the model on a runtime, sessions × intra-op threads, the most windows of one computation, and
whether those are of like length or padded as they come. The aims: the lowest median of one request at a time, and the
most texts per second under several clients with a bound on a request's p99. Requests are texts of the dev split
(`export.traffic`).

The machine is shared and its speed drifts. So candidates run in rounds: every round drives each of them over the same
texts in a seeded random order, the defaults (one session, all threads, one window) among them, and what counts is the
ratio to the defaults of the same round; of the rounds the median. The search narrows: first which form on how many
sessions, with one window and with eight; then every rule of batching for the pairs near the best; then the best few
again and again. ``--exhaustive`` drives every candidate as often as the quick search does its last few, and says how
far from the best the quick search's choice is.

Nothing is believed that a gate has not passed: only the published form and those in float32 may be chosen. Runtimes are
ONNX Runtime and, where it is installed, OpenVINO with the forms that it proves to compute (`export.on_openvino`), for
which a published INT8 form is written anew (`export.to_qdq`).
Paddle Inference is measured beside the choice and is in the table, and cannot be chosen: serving runs without Paddle.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from bundle.encode import Encoder
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.machine import commit, cores, load
from bundle.manifest import Aim, Duel, Manifest, Plan, Runtime, Setup, Trial
from bundle.plan import GET_OPENVINO, openvino_missing, this_machine, usual, why_foreign
from export.journal import Journal
from export.kept import Kept, digest
from export.paddle_default import paddle_default
from export.plan_report import tell
from export.traffic import Lap, Track, mix_of

Search = Literal["brief", "quick", "exhaustive"]
AIMS: tuple[Aim, ...] = ("latency", "throughput")
# Texts of dev that stand for its lengths, and those of a setup's warm-up.
SAMPLE, WARMUP = 192, 4
# A form × sessions pair goes on to the second stage if it is within this of the best.
NEAR = 1.2
# Of setups so close to the best that the noise decides, the one that holds windows back least is taken.
TIE = 0.02
# Memory that sessions may take of what is free, and bytes of a session for each byte of its file.
MEMORY_SHARE, SESSION_BYTES = 0.5, 2.5


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a search may take.

    Attributes:
        seconds: what the laps should take together; sizes of laps follow from it, and a stage that takes more than
            half as long again as its share ends early.
        windows: sizes of a computation that are tried.
        rounds: of the three stages.
        finalists: that reach the last stage.
        duels: rounds against the defaults at the end; 0 leaves it at the ratios of the table.
        every_form: whether all forms that may be served are tried, or only the published one.
        smallest: texts of a lap at least, however slow the model is: (latency, throughput).
    """

    seconds: float
    windows: tuple[int, ...]
    rounds: tuple[int, int, int]
    finalists: int
    duels: int
    smallest: tuple[int, int]
    every_form: bool = True


EFFORTS: dict[Search, Effort] = {
    "brief": Effort(30.0, (1, 8), (1, 2, 2), 2, 0, (6, 8), every_form=False),
    "quick": Effort(150.0, (1, 4, 8, 16, 32), (2, 2, 6), 4, 8, (8, 16)),
}
# So few candidates need no first stage.
FEW = 8
# Rounds of every candidate in the exhaustive search: as many as a finalist of the quick one has in its last stage.
FULL_ROUNDS = EFFORTS["quick"].rounds[2]
LARGEST_LAP = 96
# The graph as paddle2onnx wrote it.
PLAIN = "onnx_fp32"
# Rounds of Paddle Inference against the choice: it takes longer than all others together.
PADDLE_ROUNDS = 3
# Why OpenVINO is not among the candidates, where it could be.
NOT_WANTED = "it was not asked for"
NOT_BRIEFLY = "the brief search leaves it to `make plan`"
# Behind the name of a form that alone is left out.
ON_OPENVINO = " on openvino"


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        clients: that are under way at a time where throughput is measured.
        p99_ms: bound on a request's p99 under them; 0: twice that of the defaults in the same rounds.
        paddle: whether the choice is set against Paddle Inference.
        openvino: whether OpenVINO may be chosen, where it is installed.
    """

    search: Search = "quick"
    clients: int = 8
    p99_ms: float = 0.0
    paddle: bool = True
    openvino: bool = True


@dataclass
class Board:
    """The laps of one aim: round → setup → lap."""

    aim: Aim
    defaults: Setup
    p99_ms: float
    rounds: list[dict[Setup, Lap]] = field(default_factory=list)

    def shared(self, setups: Sequence[Setup], last: int | None = None) -> list[dict[Setup, Lap]]:
        """The rounds that all of these were in; of them the last so many."""
        found = [laps for laps in self.rounds if all(setup in laps for setup in setups)]
        return found if last is None else found[-last:]

    def ratio(self, setup: Setup, rounds: Sequence[dict[Setup, Lap]], other: Setup | None = None) -> float:
        """How many times better than the defaults, or another: in texts/s, or the median request; median of rounds."""
        return float(np.median([self._gain(laps[setup], laps[other or self.defaults]) for laps in rounds]))

    def _gain(self, lap: Lap, other: Lap) -> float:
        if self.aim == "latency":
            return other.median / lap.median
        return lap.texts_per_second / other.texts_per_second

    def p99(self, setup: Setup, rounds: Sequence[dict[Setup, Lap]]) -> float:
        """Of all requests of these rounds (milliseconds): an observed one, so of fewer than 100 the slowest."""
        return percentile([value for laps in rounds for value in laps[setup].latencies], 99)

    def limit(self, rounds: Sequence[dict[Setup, Lap]]) -> float:
        """The bound on p99 (milliseconds); infinite for the aim that has none."""
        if self.aim == "latency":
            return math.inf
        return self.p99_ms or 2 * self.p99(self.defaults, rounds)

    def ranked(self, setups: Sequence[Setup], rounds: Sequence[dict[Setup, Lap]]) -> list[Setup]:
        """From the best on: those that keep the limit by their ratio, then the others by their p99."""
        limit = self.limit(rounds)
        late = {setup: max(0.0, self.p99(setup, rounds) - limit) for setup in setups}
        return sorted(setups, key=lambda setup: (late[setup], -self.ratio(setup, rounds)))

    def best(self, setups: Sequence[Setup], rounds: Sequence[dict[Setup, Lap]]) -> Setup:
        """The choice: the first of the ranking, or of its equals the one with the smallest computations."""
        first, *others = self.ranked(setups, rounds)
        limit, ratio = self.limit(rounds), self.ratio(first, rounds)
        if self.p99(first, rounds) > limit:
            return first
        equal = [
            setup
            for setup in others
            if self.p99(setup, rounds) <= limit and self.ratio(setup, rounds) >= ratio * (1 - TIE)
        ]
        return min([first, *equal], key=lambda setup: (setup.windows, -self.ratio(setup, rounds)))


def percentile(values: Sequence[float], share: float) -> float:
    """An observed value, not one between two."""
    return float(np.percentile(values, share, method="inverted_cdf"))


# --- the candidates --------------------------------------------------------------------------------------------------


def layouts(count: int) -> list[tuple[int, int]]:
    """(sessions, threads of each) that use all of ``count`` cores, from one session with all on."""
    threads = sorted({count, *(1 << power for power in range(count.bit_length()) if 1 << power <= count)}, reverse=True)
    return [(count // number, number) for number in threads]


def candidates(
    manifest: Manifest,
    forms: Sequence[str],
    count: int,
    windows: Sequence[int],
    free_bytes: float = math.inf,
    runtime: Runtime = "onnxruntime",
) -> list[Setup]:
    """Every setup of some forms on a runtime.

    Args:
        count: cores to share.
        windows: sizes of a computation; a form whose answers depend on the batch is only run one window at a time.
        free_bytes: memory; layouts whose sessions need more than their share of it are left out.
    """
    found = []
    for name in forms:
        artifact = manifest.artifacts[name]
        sizes = sorted(set(windows)) if artifact.batch_invariant else [1]
        for sessions, threads in layouts(count):
            # Sessions of one thread share one set of weights, as OpenVINO's always do; see `export.traffic.Track.runs`.
            copies = 1 if threads == 1 or runtime == "openvino" else sessions
            weights = artifact.bytes + sum(ref.bytes for ref in artifact.files)
            if copies > 1 and copies * weights * SESSION_BYTES > free_bytes * MEMORY_SHARE:
                continue
            for size in sizes:
                for by_length in (True,) if size == 1 else (True, False):
                    found.append(
                        Setup(
                            runtime=runtime,
                            artifact=name,
                            threads=threads,
                            sessions=sessions,
                            windows=size,
                            by_length=by_length,
                        )
                    )
    return found


def free_memory() -> float:
    """Bytes that programs can still have, what the system only caches included."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass
class Course:
    """Drives rounds, or takes them from the kept ones."""

    track: Track
    kept: Kept
    wish: Wish
    tell: Callable[[str], None]
    dice: random.Random
    boards: dict[Aim, Board]
    driven: int = 0

    def clients(self, aim: Aim) -> int:
        return 1 if aim == "latency" else self.wish.clients

    def size(self, aim: Aim, stage: str, seconds: float, laps: int, effort: Effort) -> int:
        """Texts of a lap, such that so many laps take about so many seconds; settled once and kept.

        The pace is that of one warm lap of the defaults: most candidates are faster.
        """
        name = f"{aim}/{stage}"
        if (known := self.kept.size(name)) is not None:
            return known
        board, smallest = self.boards[aim], effort.smallest[AIMS.index(aim)]
        lap = self.track.drive(board.defaults, self.clients(aim), 0, smallest)
        size = int(seconds / laps / (lap.seconds / len(lap.latencies)))
        size = max(smallest, min(size, LARGEST_LAP, len(self.track.mix.texts)))
        self.kept.settle(name, size)
        return size

    def drive(
        self, aim: Aim, stage: str, setups: Sequence[Setup], rounds: int, size: int, seconds: float = math.inf
    ) -> int:
        """Adds rounds of some setups, and of the defaults, to the board of an aim.

        Args:
            seconds: after so many no further round is begun.

        Returns:
            the number of rounds.
        """
        board, begun = self.boards[aim], time.perf_counter()
        racing = list(dict.fromkeys([board.defaults, *setups]))
        for number in range(rounds):
            if time.perf_counter() - begun > seconds:
                return number
            name = f"{aim}/{self.clients(aim)}/{stage}/{number}/{size}"
            laps = self.kept.laps(name, racing)
            if laps is None:
                laps = {}
                # The texts differ from round to round and are the same for all in a round.
                place = len(board.rounds) + 1
                for setup in self.dice.sample(racing, len(racing)):
                    self.tell(f"{aim}, {stage}: {setup}")
                    laps[setup] = self.track.drive(setup, self.clients(aim), place, size)
                # In the order in which kept ones are read: of equals the first is taken, here and in a resumed search.
                laps = self.kept.keep(name, {setup: laps[setup] for setup in racing})
                self.driven += 1
            else:
                self.tell(f"{aim}, {stage}: kept")
            board.rounds.append(laps)
        return rounds

    def racing(self, aim: Aim, everything: Sequence[Setup]) -> list[Setup]:
        """The candidates of an aim: one request at a time fills no computation beyond its own windows."""
        if aim == "throughput":
            return list(everything)
        most = max(len(text) for text in self.track.mix.texts)
        enough = min((setup.windows for setup in everything if setup.windows >= most), default=most)
        return [setup for setup in everything if setup.windows <= enough]

    def narrow(self, aim: Aim, search: Search, everything: Sequence[Setup], effort: Effort) -> tuple[Setup, Setup]:
        """The search of the module's docstring; returns the choice, and the best that ONNX Runtime runs."""
        everything = self.racing(aim, everything)
        board, share = self.boards[aim], effort.seconds / len(AIMS) / 3

        def stage(number: int, setups: Sequence[Setup]) -> list[dict[Setup, Lap]]:
            rounds, name = effort.rounds[number - 1], f"{search} {number}"
            laps = len(dict.fromkeys([board.defaults, *setups])) * rounds
            size = self.size(aim, name, share, laps, effort)
            return board.shared(setups, self.drive(aim, name, setups, rounds, size, 1.5 * share))

        fine = everything
        if len(everything) > FEW:
            coarse = [setup for setup in everything if setup.by_length and setup.windows in (1, 8)]
            rounds = stage(1, coarse)
            first = board.ranked(coarse, rounds)[0]
            least = board.ratio(first, rounds) / NEAR
            near = {pair(item) for item in coarse if board.ratio(item, rounds) >= least}
            # A server may be without OpenVINO, so the best of ONNX Runtime comes along to the end.
            near |= {pair(first), pair(board.ranked(usual_runtime(coarse), rounds)[0])}
            fine = [setup for setup in everything if pair(setup) in near]
        ranked = board.ranked(fine, stage(2, fine))
        last = ranked[: effort.finalists]
        if not usual_runtime(last):
            last.append(usual_runtime(ranked)[0])
        rounds = stage(3, last)
        return board.best(last, rounds), board.best(usual_runtime(last), rounds)


def pair(setup: Setup) -> tuple[Runtime, str, int]:
    """What the first stage of a search compares: a form on a runtime, and how many sessions of it."""
    return setup.runtime, setup.artifact, setup.sessions


def usual_runtime(setups: Sequence[Setup]) -> list[Setup]:
    """Those that ONNX Runtime runs."""
    return [setup for setup in setups if setup.runtime == "onnxruntime"]


@dataclass(frozen=True)
class Finding:
    """What a search chose and how far from the best that is, where everything was driven.

    Attributes:
        best: the best of an exhaustive search, by aim.
        regret: 1 - (what the quick choice does / what the best does), the median of rounds that these two were driven
            in afterwards: of many candidates the one that looks best has had luck as well.
        instead: the best that ONNX Runtime runs, by aim, where another runtime was chosen.
    """

    chosen: dict[Aim, Setup]
    quick: dict[Aim, Setup]
    regret: dict[Aim, float]
    instead: dict[Aim, Setup]


def plan(
    bundle: Bundle, journal: Journal, wish: Wish | None = None, *, force: bool = False, kept: Path | None = None
) -> Bundle:
    """Measures and chooses, and writes the plan into the manifest.

    Args:
        force: measure anew what is known.
        kept: file of measurements; by default ``plan.json`` beside the bundle folder.

    Raises:
        ExportError: nothing is published, or there are no dev rows.
    """
    wish, begun = wish or Wish(), time.perf_counter()
    here = this_machine()
    if not bundle.manifest.published:
        raise ExportError(f"{bundle.root}: nothing is published yet, so there is nothing to plan; run `make export`")
    bundle, unwritten = _for_openvino(bundle, wish, journal)
    manifest = bundle.manifest
    file = kept or (bundle.root.parent if bundle.root.name == "bundle" else bundle.root) / "plan.json"
    dev = manifest.splits["dev"].sha256 if "dev" in manifest.splits else ""
    sample = digest([dev, manifest.text.model_dump(mode="json"), SAMPLE])
    known = Kept(file, here, manifest, sample, forget=wish.search if force else "")
    if known.unfinished != wish.search and (reason := _up_to_date(manifest, wish, here.versions)) is not None:
        journal.say(f"  up to date: {reason}")
        return bundle
    busy, count = load(), cores()
    if busy > count / 4:
        journal.say(f"    the machine is busy (load {busy:.1f} on {count} cores): ratios count, times are too high")
    bundle.verify([*manifest.servable, *(manifest.servable_on("openvino") if _tries_openvino(wish) else ())])
    with journal.progress("reading dev texts"):
        mix = mix_of(bundle, Encoder.of(bundle), SAMPLE)
    effort = EFFORTS["brief" if wish.search == "brief" else "quick"]
    forms = _forms(manifest, wish)
    everything = candidates(manifest, forms, count, effort.windows, free_memory())
    ready, left_out = _on_openvino(bundle, wish, known, unwritten, journal)
    if ready:
        more = candidates(manifest, ready, count, effort.windows, free_memory(), "openvino")
        # Each candidate is to be measured as often as without these.
        effort = replace(effort, seconds=effort.seconds * (len(everything) + len(more)) / len(everything))
        everything += more
    defaults = usual(manifest.published, count)
    track = Track(bundle, mix, WARMUP)
    with journal.progress("plan") as progress:
        done = _Count(_laps_ahead(everything, effort, wish), progress)
        boards = {aim: Board(aim, defaults, wish.p99_ms) for aim in AIMS}
        course = Course(track, known, wish, done, random.Random(13), boards)
        finding = _search(course, everything, effort)
        duels, paddle = _duels(course, finding, effort, journal, bundle)
    throughput = course.boards["throughput"]
    rounds = throughput.shared([finding.chosen["throughput"]])
    made = Plan(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        search=wish.search,
        machine=here,
        artifacts={name: manifest.artifacts[name].identity for name in sorted({s.artifact for s in everything})},
        dev_sha256=manifest.splits["dev"].sha256,
        sample=len(mix.texts),
        windows_per_text=round(float(np.mean([len(text) for text in mix.texts])), 2),
        tokens_per_text=round(float(np.mean(mix.tokens)), 1),
        clients=wish.clients,
        p99_limit_ms=round(throughput.limit(rounds), 1),
        warmup=WARMUP,
        load_before=busy,
        seconds=round(time.perf_counter() - begun, 1),
        latency=finding.chosen["latency"],
        throughput=finding.chosen["throughput"],
        defaults=defaults,
        instead=finding.instead,
        vs_defaults=duels,
        table=(*table_of(course.boards), *paddle),
        left_out=left_out,
    )
    tell(made, finding.quick, finding.regret, journal, course.driven)
    journal.say(f"    measurements: {file}")
    bundle = bundle.save(manifest.model_copy(update={"plan": made}))
    known.finish(wish.search)
    return bundle


def _search(course: Course, everything: Sequence[Setup], effort: Effort) -> Finding:
    search = course.wish.search
    found = {aim: course.narrow(aim, "brief" if search == "brief" else "quick", everything, effort) for aim in AIMS}
    quick, instead = ({aim: both[place] for aim, both in found.items()} for place in (0, 1))
    if search != "exhaustive":
        return Finding(quick, quick, {}, _where_needed(quick, instead))
    chosen: dict[Aim, Setup] = {}
    regret: dict[Aim, float] = {}
    for aim in AIMS:
        board = course.boards[aim]
        size = course.size(aim, "quick 3", 0, 1, effort)
        racing = course.racing(aim, everything)
        course.drive(aim, "exhaustive", racing, FULL_ROUNDS, size)
        # The first of the ranking and not the choice: the tie rule may not flatter the quick search.
        full = board.shared(racing, FULL_ROUNDS)
        best = board.ranked(racing, full)[0]
        instead[aim] = board.best(usual_runtime(racing), full)
        chosen[aim], regret[aim] = quick[aim], 0.0
        if best != quick[aim]:
            both = [best, quick[aim]]
            rounds = board.shared(both, course.drive(aim, "final", both, 2 * FULL_ROUNDS, size))
            regret[aim] = 1 - board.ratio(quick[aim], rounds, best)
            chosen[aim] = board.best(both, rounds)
    return Finding(chosen, quick, regret, _where_needed(chosen, instead))


def _where_needed(chosen: dict[Aim, Setup], instead: dict[Aim, Setup]) -> dict[Aim, Setup]:
    return {aim: instead[aim] for aim, setup in chosen.items() if setup.runtime != "onnxruntime"}


def _forms(manifest: Manifest, wish: Wish) -> tuple[str, ...]:
    """What is tried on ONNX Runtime: the published form first."""
    every = EFFORTS["brief" if wish.search == "brief" else "quick"].every_form
    return manifest.servable if every else manifest.servable[:1]


def _tries_openvino(wish: Wish) -> bool:
    return wish.openvino and wish.search != "brief" and not openvino_missing()


def _for_openvino(bundle: Bundle, wish: Wish, journal: Journal) -> tuple[Bundle, dict[str, str]]:
    """The bundle with the published form as OpenVINO can open it, or the reason for which it cannot be written so."""
    if not _tries_openvino(wish):
        return bundle, {}
    from export.to_qdq import NAME, to_qdq

    try:
        return to_qdq(bundle, journal), {}
    except ExportError as error:
        return bundle, {NAME: str(error)}


def _on_openvino(
    bundle: Bundle, wish: Wish, known: Kept, unwritten: dict[str, str], journal: Journal
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The forms that OpenVINO computes as promised, and what is left out of the plan with the reason, which is told.

    Args:
        unwritten: what could not be written for it, with the reason; it may know the published form all the same.
    """
    if not wish.openvino:
        return (), {"openvino": NOT_WANTED}
    if not _tries_openvino(wish):
        reason = f"it is not installed; {GET_OPENVINO}" if openvino_missing() else NOT_BRIEFLY
        journal.say(f"    without OpenVINO: {reason}")
        return (), {"openvino": reason}
    from export.on_openvino import refusals

    forms = bundle.manifest.servable_on("openvino")
    refused = unwritten | refusals(bundle, forms, known, journal)
    for name, reason in refused.items():
        journal.say(f"    without {name} on OpenVINO: {reason}")
    return tuple(name for name in forms if name not in refused), {
        name + ON_OPENVINO: reason for name, reason in refused.items()
    }


def _up_to_date(manifest: Manifest, wish: Wish, versions: dict[str, str]) -> str | None:
    """Why nothing has to be measured; None where it has."""
    made = manifest.plan
    if made is None or why_foreign(made, this_machine()) or made.machine.versions != versions:
        return None
    order: tuple[Search, ...] = ("brief", "quick", "exhaustive")
    if order.index(made.search) < order.index(wish.search) or made.clients != wish.clients:
        return None
    if wish.p99_ms and made.p99_limit_ms != round(wish.p99_ms, 1):
        return None
    dev = manifest.splits.get("dev")
    if dev is None or made.dev_sha256 != dev.sha256 or not set(_forms(manifest, wish)) <= set(made.artifacts):
        return None
    tried = {*made.artifacts, *(name.removesuffix(ON_OPENVINO) for name in made.left_out)}
    unasked = made.left_out.get("openvino") == NOT_WANTED
    if _tries_openvino(wish) and (unasked or not set(manifest.servable_on("openvino")) <= tried):
        return None
    if not wish.openvino and any(made.choice(aim).runtime == "openvino" for aim in AIMS):
        return None
    return f"{made.search} plan of {made.created}: {made.throughput}"


# --- the choice against the defaults ---------------------------------------------------------------------------------


def _duels(
    course: Course, finding: Finding, effort: Effort, journal: Journal, bundle: Bundle
) -> tuple[tuple[Duel, ...], tuple[Trial, ...]]:
    """The choice for throughput against others in rounds of their own.

    Against the defaults: of the same form, of the published one, of the graph as converted, and of Paddle Inference;
    against the best that was seen of the graph as converted, which tells how much of the gain is the graph's own; and
    against the best of ONNX Runtime, where that is another.

    Returns:
        the comparisons, and a line for the table of Paddle Inference, where it was there.
    """
    if not effort.duels:
        return (), ()
    choice, defaults = finding.chosen["throughput"], course.boards["throughput"].defaults
    # What was written for OpenVINO has no defaults on ONNX Runtime.
    anywhere = bundle.manifest.artifacts[choice.artifact].runtime is None
    rivals = [*([usual(choice.artifact, cores())] if anywhere else []), defaults]
    if PLAIN in bundle.manifest.artifacts and choice.artifact != PLAIN:
        rivals += [usual(PLAIN, cores()), *_best_of(course.boards["throughput"], PLAIN)]
    if "throughput" in finding.instead:
        rivals.append(finding.instead["throughput"])
    size = course.size("throughput", "quick 3", 0, 1, effort)
    laps: dict[Setup, list[Lap]] = {setup: [] for setup in (choice, *rivals)}
    slow: list[Lap] = []
    with paddle_default(bundle, course.track.mix.lap(0, WARMUP), journal, course.wish.paddle) as paddle:
        for number in range(effort.duels):
            racing = [*laps, paddle.setup] if paddle and number < PADDLE_ROUNDS else list(laps)
            for setup in course.dice.sample(racing, len(racing)):
                course.tell(f"against the defaults: {setup}")
                if paddle and setup == paddle.setup:
                    slow.append(paddle.drive(course.track.mix.lap(1000 + number, size)))
                else:
                    laps[setup].append(course.track.drive(setup, course.wish.clients, 1000 + number, size))
        trials = (_paddles_trial(paddle.setup, slow, laps[defaults]),) if paddle else ()
        if paddle:
            laps[paddle.setup] = slow
    mine = [lap.texts_per_second for lap in laps[choice]]
    duels = []
    for setup, others in laps.items():
        if setup == choice:
            continue
        ratios = [left / right.texts_per_second for left, right in zip(mine, others, strict=False)]
        duels.append(
            Duel(
                against=setup,
                ratio=round(float(np.median(ratios)), 3),
                lowest=round(min(ratios), 3),
                highest=round(max(ratios), 3),
                texts_per_second=round(float(np.median([lap.texts_per_second for lap in others])), 2),
                rounds=len(others),
                requests=sum(len(lap.latencies) for lap in others),
            )
        )
    return tuple(duels), trials


def _paddles_trial(setup: Setup, laps: Sequence[Lap], defaults: Sequence[Lap]) -> Trial:
    """Paddle Inference as a line of the table: one text at a time, and its rate beside the defaults' under the clients.

    Args:
        laps, defaults: of the same rounds; the defaults were in later ones as well.
    """
    values = [value for lap in laps for value in lap.latencies]
    rates = [lap.texts_per_second for lap in laps]
    ratios = [rate / other.texts_per_second for rate, other in zip(rates, defaults, strict=False)]
    return Trial(
        setup=setup,
        p50_ms=round(float(np.median(values)), 3),
        p99_ms=round(percentile(values, 99), 3),
        requests=len(values),
        rounds=len(laps),
        texts_per_second=round(float(np.median(rates)), 3),
        throughput_ratio=round(float(np.median(ratios)), 3),
        loaded_requests=len(values),
        loaded_rounds=len(laps),
    )


def _best_of(board: Board, artifact: str) -> list[Setup]:
    """The setup of a form on ONNX Runtime with the best ratio to the defaults; empty if none was driven."""
    driven = dict.fromkeys(setup for laps in board.rounds for setup in laps if setup.artifact == artifact)
    setups = usual_runtime(list(driven))
    return sorted(setups, key=lambda setup: -board.ratio(setup, board.shared([setup])))[:1]


# --- the table -------------------------------------------------------------------------------------------------------


def table_of(boards: dict[Aim, Board]) -> tuple[Trial, ...]:
    """Every setup with what it did, the best throughput first."""
    setups = dict.fromkeys(setup for board in boards.values() for laps in board.rounds for setup in laps)
    trials = []
    for setup in setups:
        fields: dict[str, float | int] = {}
        for aim, board in boards.items():
            rounds = board.shared([setup])
            if not rounds:
                continue
            values = [value for laps in rounds for value in laps[setup].latencies]
            p50, p99, ratio = float(np.median(values)), percentile(values, 99), board.ratio(setup, rounds)
            if aim == "latency":
                fields |= {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "speedup": round(ratio, 3)}
                fields |= {"requests": len(values), "rounds": len(rounds)}
            else:
                rate = float(np.median([laps[setup].texts_per_second for laps in rounds]))
                fields |= {"loaded_p50_ms": round(p50, 3), "loaded_p99_ms": round(p99, 3)}
                fields |= {"throughput_ratio": round(ratio, 3), "texts_per_second": round(rate, 3)}
                fields |= {"loaded_requests": len(values), "loaded_rounds": len(rounds)}
        trials.append(Trial.model_validate({"setup": setup, **fields}))
    return tuple(sorted(trials, key=lambda trial: -(trial.throughput_ratio or 0)))


def _laps_ahead(everything: Sequence[Setup], effort: Effort, wish: Wish) -> int:
    """About how many laps a search has: for the progress bar."""
    coarse, fine = 0, len(everything)
    if len(everything) > FEW:
        coarse = len([setup for setup in everything if setup.by_length and setup.windows in (1, 8)]) + 1
        # As a rule one pair of form and sessions in three stays near the best.
        pairs = len({pair(setup) for setup in everything})
        fine = len(everything) // pairs * max(1, pairs // 3) + 1
    laps = 2 * (coarse * effort.rounds[0] + fine * effort.rounds[1] + (effort.finalists + 1) * effort.rounds[2])
    if wish.search == "exhaustive":
        laps += 2 * (len(everything) + 6) * FULL_ROUNDS
    return laps + 3 * effort.duels


class _Count:
    """Counts laps for the progress bar."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self.total, self.progress, self.done = total, progress, 0

    def __call__(self, what: str) -> None:
        self.done += 1
        self.progress(self.done, max(self.total, self.done))
