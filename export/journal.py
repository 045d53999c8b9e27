"""What the steps tell: a person reads the console, and everything the libraries say goes to ``export.log``.

Steps get a `Journal`; tests give them a silent one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bundle.errors import ConversionFailed
from bundle.machine import cores, is_amd
from bundle.predict import Progress as ProgressCall

ROOT = Path(__file__).resolve().parents[1]
# Seconds between two lines of long work where there is no terminal.
ALIVE = 60.0


class Journal:
    """The console and the log file of one export.

    Args:
        log: where the libraries' own words go; appended to.
    """

    def __init__(self, log: Path, console: Console | None = None) -> None:
        self.log = log
        self.console = console or Console(quiet=True)

    def say(self, text: str) -> None:
        """One line for the person."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def write(self, text: str) -> None:
        """Text for the log file."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(text if text.endswith("\n") else text + "\n")

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[ProgressCall]:
        """A progress bar, or a line a minute in a log file, which shows no bar.

        Yields:
            the function that `bundle.predict.predict` calls with what is done, of how much.
        """
        bar = Progress(
            TextColumn("    {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task(what, total=None)
            started = said = time.monotonic()

            def update(done: int, total: int) -> None:
                nonlocal said
                bar.update(task, completed=done, total=total)
                now = time.monotonic()
                if not self.console.is_terminal and now - said >= ALIVE:
                    said = now
                    self.say(f"    {what}: {done:,} of {total:,} after {now - started:.0f} s")

            yield update

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Sends what libraries print, warn and log in this process to the log file."""
        words = io.StringIO()
        handler = logging.StreamHandler(words)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            with (
                contextlib.redirect_stdout(words),
                contextlib.redirect_stderr(words),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            root.removeHandler(handler)
            if text := words.getvalue().strip():
                self.write(text)

    def worker(self, step: str, module: str, arguments: Sequence[str]) -> None:
        """Runs ``python -m module`` in a process of its own: Paddle and its converters may abort the whole process.

        Raises:
            ConversionFailed: with the last lines it wrote and the log file's path.
        """
        self.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {step}: python -m {module} {' '.join(arguments)}")
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            cwd=ROOT,
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        self.write(answer.stdout)
        if answer.returncode:
            lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
            how = f"signal {-answer.returncode}" if answer.returncode < 0 else f"exit status {answer.returncode}"
            last = lines[-1] if lines else "it said nothing"
            raise ConversionFailed(step, f"the converter ended with {how}: {last} (all of it: {self.log})")


def worker_environment() -> dict[str, str]:
    """The environment of a process that imports Paddle: its threads, and MKL's fast path on AMD."""
    threads = str(cores())
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "FLAGS_paddle_num_threads": threads,
        "GLOG_minloglevel": "2",
    }
    if is_amd():
        # Paddle's bundled MKL takes a slow path on AMD unless told; 44 → 149 GFLOP/s measured on two cores.
        environment["MKL_DEBUG_CPU_TYPE"] = "5"
    environment.pop("PYTHONWARNINGS", None)
    return environment
