"""A process with Paddle in it that converts one bundle after another: importing Paddle takes longer than a tiny model.

Run as a program it reads the path of a bundle a line, adds the artifacts up to ``onnx_fp32`` with the export's own
steps, and answers a line for each: empty, or what went wrong. That the steps start a process of their own for this is
tested with the command (`test_export_command.py`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


class Converter:
    """The process, as its caller sees it; started when it is first asked."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, root: Path) -> None:
        """Converts the bundle in a folder."""
        if self._process is None:
            with self.log.open("wb") as log:
                command = [sys.executable, "-W", "ignore", str(Path(__file__))]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                self._process = subprocess.Popen(command, text=True, stderr=log, **pipes)  # type: ignore[call-overload]
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{root}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == "\n", f"{root}: {answer.strip() or 'the converter died'}\n{self.log.read_text()[-2000:]}"

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.communicate()


def serve() -> None:
    """The life of the process."""
    from bundle.folder import open_bundle
    from export.to_onnx import to_onnx
    from export.to_static import to_static
    from tests.export.families import OneProcess

    answers = os.fdopen(os.dup(1), "w")
    # Libraries write to it as well.
    os.dup2(2, 1)
    for line in sys.stdin:
        root, said = Path(line.strip()), ""
        journal = OneProcess(root.parent / "export.log")
        try:
            to_onnx(to_static(open_bundle(root), journal), journal)
        except Exception as error:
            said = f"{type(error).__name__}: {error}".replace("\n", " ")
        with contextlib.suppress(BrokenPipeError):
            print(said, file=answers, flush=True)


if __name__ == "__main__":
    serve()
