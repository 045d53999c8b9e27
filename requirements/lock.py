"""Makes the hashed locks in this folder anew from pyproject.toml. Needs uv (`pip install uv`).

The locks carry no index address: pip takes the packages from wherever the machine gets its packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOMS = ("finetune", "export", "serving", "triton", "loadtests", "dev")
FLAGS = [
    *("--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_35"),
]
# Packages that share an import name with their GPU twin and may not stand beside it.
CPU_ONLY = ("paddlepaddle", "onnxruntime")


def compile_lock(output: str, extras: tuple[str, ...], *more: str) -> None:
    """Resolves the extras and writes one lock."""
    command = ["uv", "pip", "compile", "pyproject.toml", *FLAGS, "-o", str(HERE / output), *more]
    for extra in extras:
        command += ["--extra", extra]
    subprocess.run(command, cwd=HERE.parent, check=True)
    print(f"wrote requirements/{output}")


def main() -> None:
    if shutil.which("uv") is None:
        sys.exit("error: uv is not installed; `pip install uv` brings it")
    compile_lock("cpu.txt", ROOMS)
    compile_lock("serving.txt", ("serving", "triton"), "-c", str(HERE / "cpu.txt"))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        overrides.write("".join(f'{name} ; sys_platform == "never"\n' for name in CPU_ONLY))
        overrides.flush()
        compile_lock("gpu.txt", (*ROOMS, "gpu"), "--override", overrides.name)


if __name__ == "__main__":
    main()
