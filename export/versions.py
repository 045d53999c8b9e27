"""Exported bundle → kept version: a copy that later trainings and exports leave alone, and its model in Triton.

Which version is served, and whether it still computes what it promises, is for `serving` to decide and to check.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bundle.errors import BundleError, ExportError
from bundle.folder import Bundle, create_bundle, open_bundle
from bundle.versions import VERSIONS, home_of, is_kept, kept, next_version
from export.artifact import place


def keep(bundle: Bundle) -> Bundle:
    """Copies a bundle to ``versions/<number>`` beside it, whole or not at all.

    Files get a second name where the file system allows it, so that a version costs almost no space.

    Returns:
        the kept version. It has the bundle's own number, unless another bundle was kept under it: then it gets the
        next one, and so does the bundle that it was copied from. A bundle that is kept already is not copied again.

    Raises:
        ExportError: nothing is published yet.
        BundleError: a file is missing or differs from its checksum.
    """
    if is_kept(bundle.root):
        bundle.verify()
        return bundle
    if not bundle.manifest.published:
        raise ExportError(f"the bundle {bundle.name!r} publishes no artifact; run `make export`")
    bundle.verify()
    home = home_of(bundle.root)
    earlier = kept(home).get(bundle.manifest.version)
    if earlier is not None:
        known = open_bundle(earlier, verify=False)
        if known.manifest == bundle.manifest:
            return known
        bundle = bundle.save(bundle.manifest.model_copy(update={"version": next_version(home)}))
    target = home / VERSIONS / str(bundle.manifest.version)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        new = Path(scratch) / "new"
        for ref in bundle.files():
            place(bundle.path(ref.file), new / ref.file)
        create_bundle(new, bundle.manifest)
        try:
            new.rename(target)
        except OSError as error:
            raise BundleError(f"{target}: cannot be written: {error.strerror}") from error
    return open_bundle(target, verify=False)
