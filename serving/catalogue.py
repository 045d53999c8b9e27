"""Bundle folders → models that can be served: found, opened, checksums compared, tokenizer checked.

That the live engine computes what the bundle promises is the gateway's part, since it needs the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundle.encode import Encoder
from bundle.errors import BundleError
from bundle.folder import MANIFEST, Bundle, open_bundle
from bundle.golden import Golden, check_ids, read_golden
from bundle.manifest import Artifact, Manifest, Parity
from bundle.versions import triton_name
from serving.rules import LiveRules
from serving.running import Running, as_published


@dataclass(frozen=True)
class ServedModel:
    """A bundle of which one artifact is served.

    Attributes:
        format: name of that artifact, such as ``onnx_int8``: the published one, unless the plan chose another.
        golden: the reference rows that the live engine must reproduce.
        max_windows: windows of one text; the bundle's limit unless the server sets another.
        running: how it is run: sessions, threads, batching.
        rules: what acts on the model's answers; None where no rule folder is served.
    """

    bundle: Bundle
    encoder: Encoder
    format: str
    golden: tuple[Golden, ...]
    max_windows: int
    running: Running
    rules: LiveRules | None = None

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def id(self) -> str:
        """Tells one loaded version from every other, of this model and of others."""
        return f"{self.name}@{self.version}"

    @property
    def triton_name(self) -> str:
        """What Triton calls it."""
        return triton_name(self.bundle.root, self.manifest)

    @property
    def artifact(self) -> Artifact:
        return self.manifest.artifacts[self.format]

    @property
    def parity(self) -> Parity:
        """The parity that export measured; `load` makes sure that it is there."""
        assert self.artifact.parity is not None
        return self.artifact.parity

    @property
    def graph(self) -> Path:
        """The file that a runtime opens."""
        return self.bundle.path(self.artifact.file)


def find(folder: Path) -> list[Path]:
    """Bundle folders under ``folder``: itself, ``<name>`` or ``<name>/bundle``, in alphabetical order."""
    if (folder / MANIFEST).is_file():
        return [folder]
    if not folder.is_dir():
        return []
    found = []
    for child in sorted(folder.iterdir()):
        found += [place for place in (child, child / "bundle") if (place / MANIFEST).is_file()]
    return found


def load(
    folder: Path,
    skipped: Callable[[str], None] = lambda sentence: None,
    *,
    max_windows: int = 0,
    rules: Path | None = None,
    run_as: Callable[[Manifest], Running] = as_published,
) -> dict[str, ServedModel]:
    """Opens and checks every exported bundle under ``folder``.

    Args:
        skipped: told of each bundle that was not exported yet.
        max_windows: of one text, for every model; 0 keeps each bundle's own limit.
        rules: folder of rule files, ``<model>.toml``.
        run_as: decides which form is served and how it is run.

    Raises:
        BundleError: nothing to serve, or a bundle is broken; names the bundle and what to do.
        RulesInvalid: a rule file is wrong.
    """
    places = find(folder)
    if not places:
        raise BundleError(f"there is no bundle under {folder}; run `make finetune export` first")
    models: dict[str, ServedModel] = {}
    for place in places:
        bundle = open_bundle(place, verify=False)
        if not bundle.manifest.published:
            skipped(f"{place} is trained but not exported; run `make export`")
            continue
        if bundle.name in models:
            raise BundleError(f"{place} and {models[bundle.name].bundle.root} have the same name {bundle.name!r}")
        models[bundle.name] = _checked(bundle, max_windows, rules, run_as(bundle.manifest))
    if not models:
        raise BundleError(f"no bundle under {folder} has been exported; run `make export`")
    return models


def _checked(bundle: Bundle, max_windows: int, rules: Path | None, running: Running) -> ServedModel:
    form = running.form
    artifact = bundle.manifest.artifacts[form]
    if artifact.format != "onnx":
        raise BundleError(f"{bundle.root}: published artifact {form!r} is {artifact.format}, not onnx")
    if artifact.parity is None:
        raise BundleError(f"{bundle.root}: published artifact {form!r} has no parity; run `make export`")
    bundle.verify([form])
    encoder = Encoder.of(bundle)
    golden = tuple(read_golden(bundle.path(bundle.manifest.golden.file)))
    try:
        check_ids(golden, encoder)
    except BundleError as error:
        raise BundleError(f"{bundle.root}: {error}") from error
    return ServedModel(
        bundle,
        encoder,
        form,
        golden,
        max_windows or bundle.manifest.text.max_windows,
        running,
        None if rules is None else LiveRules(rules / f"{bundle.name}.toml", bundle.manifest.task),
    )
