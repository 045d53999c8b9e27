"""Makes the hashed locks in this folder anew from pyproject.toml. Needs uv (`pip install uv`).

The locks carry no index address: pip takes the packages from wherever the machine gets its packages. PyTorch's CPU
wheel (a fifth of the size of the one with CUDA) is in PyTorch's own index only: tell uv of it (`UV_FIND_LINKS`,
`UV_INDEX`) to make that lock anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOMS = ("finetune", "export", "serving", "tracing", "triton", "loadtests", "dev")
FLAGS = [
    *("--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_35"),
]
# The outside references of `make bench ARGS=--references`, each in an environment of its own.
REFERENCES = {
    "torch": (
        *("torch==2.13.0+cpu", "transformers==4.57.6", "optimum==2.1.0", "optimum-onnx==0.1.0"),
        *("onnx==1.23.2", "onnxruntime==1.32.0", "numpy==1.26.4"),
    ),
    "openvino": ("openvino==2026.4.1", "nncf==3.4.0", "numpy==1.26.4"),
}
# What `make audit` runs, in an environment of its own as well.
AUDIT = ("pip-audit==2.10.1",)
# Packages that share an import name with their GPU twin and may not stand beside it.
CPU_ONLY = ("paddlepaddle", "onnxruntime")


def compile_lock(output: str, extras: tuple[str, ...], *more: str) -> None:
    """Resolves the extras and writes one lock."""
    _compile("pyproject.toml", output, *more, *(word for extra in extras for word in ("--extra", extra)))


def compile_apart(output: str, wanted: tuple[str, ...]) -> None:
    """Resolves what has an environment of its own, beside the project's, and writes its lock."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(wanted) + "\n")
        source.flush()
        _compile(source.name, output)


def _compile(source: str, output: str, *more: str) -> None:
    command = ["uv", "pip", "compile", source, *FLAGS, "-o", str(HERE / output), *more]
    subprocess.run(command, cwd=HERE.parent, check=True)
    print(f"wrote requirements/{output}")


def main() -> None:
    if shutil.which("uv") is None:
        sys.exit("error: uv is not installed; `pip install uv` brings it")
    compile_lock("cpu.txt", ROOMS)
    compile_lock("serving.txt", ("serving", "triton"), "-c", str(HERE / "cpu.txt"))
    # Beside cpu.txt or serving.txt in the same environment, so with their versions.
    compile_lock("openvino.txt", ("openvino",), "-c", str(HERE / "cpu.txt"))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        overrides.write("".join(f'{name} ; sys_platform == "never"\n' for name in CPU_ONLY))
        overrides.flush()
        compile_lock("gpu.txt", (*ROOMS, "gpu"), "--override", overrides.name)
    compile_apart("audit.txt", AUDIT)
    for name, wanted in REFERENCES.items():
        compile_apart(f"references-{name}.txt", wanted)


if __name__ == "__main__":
    main()
