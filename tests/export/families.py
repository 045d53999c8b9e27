"""Every base × every head through the conversion chain, in one process that imports Paddle once.

Run as a program (`python tests/export/families.py FOLDER`): it builds a tiny model of each with PaddleNLP and takes it
through the export's own steps to the fused graph. A step that fails is written beside the bundle and not raised, so
that one test fails and not all of them.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from export import to_onnx, to_static  # noqa: E402
from export.fuse import fuse  # noqa: E402
from export.journal import Journal  # noqa: E402
from tests.export.tiny import FAMILIES, build  # noqa: E402

# Few: the golden rows are what parity is measured on.
ROWS = 6


class OneProcess(Journal):
    """Runs the workers here, where Paddle is imported already."""

    def worker(self, step: str, module: str, arguments: Sequence[str]) -> None:
        if step == "to_static":
            to_static.convert(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        else:
            to_onnx.convert(*arguments)


def convert(folder: Path, name: str) -> None:
    """Builds `folder/<name>/bundle` and adds its artifacts up to `onnx_fused`."""
    from bundle.folder import open_bundle

    build(folder, name, ROWS)
    journal = OneProcess(folder / name / "export.log")
    bundle = open_bundle(folder / name / "bundle")
    fuse(to_onnx.to_onnx(to_static.to_static(bundle, journal), journal), journal)


if __name__ == "__main__":
    for wanted in sys.argv[2:] or list(FAMILIES):
        try:
            convert(Path(sys.argv[1]), wanted)
        except Exception as error:
            (Path(sys.argv[1]) / wanted).mkdir(parents=True, exist_ok=True)
            (Path(sys.argv[1]) / wanted / "error.txt").write_text(
                f"{error}\n{traceback.format_exc()}", encoding="utf-8"
            )
        print(wanted, flush=True)
