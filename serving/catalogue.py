"""Bundle folders → models that can be served: found, opened, checksums compared, tokenizer checked.

That the live engine computes what the bundle promises is the gateway's part, since it needs the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle.encode import Encoder
from bundle.errors import BundleError, VersionUnknown
from bundle.folder import MANIFEST, Bundle, open_bundle
from bundle.golden import Golden, check_ids, read_golden
from bundle.manifest import Artifact, Manifest, Parity
from bundle.versions import home_of, is_kept, kept, triton_name
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
    """Bundle folders under ``folder``: itself, or ``<name>``, ``<name>/bundle`` and ``<name>/versions/<number>``.

    In alphabetical order, the kept versions of a model after the bundle that they were kept of.
    """
    if (folder / MANIFEST).is_file():
        return [folder]
    if not folder.is_dir():
        return []
    found = []
    for child in sorted(folder.iterdir()):
        found += [place for place in (child, child / "bundle") if (place / MANIFEST).is_file()]
        found += kept(child).values()
    return [*found, *kept(folder).values()]


def load(
    folder: Path,
    skipped: Callable[[str], None] = lambda sentence: None,
    *,
    decided: Mapping[str, int] | None = None,
    max_windows: int = 0,
    rules: Path | None = None,
    run_as: Callable[[Manifest], Running] = as_published,
) -> dict[str, ServedModel]:
    """Opens and checks one version of every exported model under ``folder``.

    Args:
        skipped: told of each bundle that was not exported yet, and of each kept version that cannot be opened.
        decided: which version of a model is to be served; of the others it is the one with the highest number.
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
    found: dict[str, dict[int, Bundle]] = {}
    for place in places:
        if (bundle := _opened(place, skipped)) is not None:
            _put(bundle, found.setdefault(bundle.name, {}), skipped)
    if not found:
        raise BundleError(f"no bundle under {folder} has been exported; run `make export`")
    models: dict[str, ServedModel] = {}
    for name, versions in found.items():
        number = (decided or {}).get(name, max(versions))
        if number not in versions:
            there = ", ".join(map(str, sorted(versions)))
            raise BundleError(
                f"version {number} of {name!r} was promoted and is not there any more (there is {there}); "
                "put it back, or take the model out of the file of versions"
            )
        models[name] = checked(versions[number], max_windows, rules, run_as(versions[number].manifest))
    return models


def open_kept(home: Path, name: str, number: int) -> Bundle:
    """Opens a kept version of a model without comparing checksums.

    Args:
        home: the folder that holds ``versions``.

    Raises:
        VersionUnknown: none was kept under this number.
        BundleError: it is not whole, or not what its place says.
    """
    places = kept(home)
    if number not in places:
        raise VersionUnknown(name, str(number), [str(known) for known in places], "kept")
    bundle = open_bundle(places[number], verify=False)
    if (bundle.name, bundle.manifest.version) != (name, number):
        raise BundleError(f"{bundle.root} is version {bundle.manifest.version} of {bundle.name!r}")
    if not bundle.manifest.published:
        raise BundleError(f"{bundle.root} publishes no artifact")
    return bundle


def _opened(place: Path, skipped: Callable[[str], None]) -> Bundle | None:
    """The bundle at a place, or None where it is skipped: a broken version hinders none but itself."""
    if is_kept(place):
        try:
            manifest = open_bundle(place, verify=False).manifest
            return open_kept(home_of(place), manifest.name, int(place.name))
        except BundleError as error:
            skipped(str(error))
            return None
    bundle = open_bundle(place, verify=False)
    if bundle.manifest.published:
        return bundle
    skipped(f"{place} is trained but not exported; run `make export`")
    return None


def _put(bundle: Bundle, versions: dict[int, Bundle], skipped: Callable[[str], None]) -> None:
    """Adds a bundle to those of its name; the working bundle gives way to the version that was kept of it."""
    place, number = bundle.root, bundle.manifest.version
    for other in versions.values():
        if home_of(other.root) != home_of(place) or not (is_kept(place) or is_kept(other.root)):
            raise BundleError(f"{place} and {other.root} have the same name {bundle.name!r}")
    if (working := versions.get(number)) and working.manifest != bundle.manifest:
        skipped(
            f"{working.root} is another version {number} than {place}; "
            "`python -m export version` gives it a number of its own"
        )
    versions[number] = bundle


def checked(bundle: Bundle, max_windows: int, rules: Path | None, running: Running) -> ServedModel:
    """A bundle that can be served: its checksums compared, its tokenizer checked with the golden rows.

    Raises:
        BundleError: a file is missing or wrong, or the published artifact cannot be served.
        RulesInvalid: its rule file is wrong.
    """
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
