"""What the finetune command line lists without training anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.__main__ import _has, app
from finetune.data.assets import ASSETS
from finetune.data.named import DERIVED, NAMED
from finetune.recipe import load, shipped
from finetune.terminal import console


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is wide enough for every table; the console has looked at the real one when it was imported."""
    monkeypatch.setattr(console, "_width", 400)
    monkeypatch.setattr(console, "_height", 100)


def test_data_lists_every_asset_with_its_licence() -> None:
    told = CliRunner().invoke(app, ["data"])
    assert told.exit_code == 0
    for asset in ASSETS.values():
        assert asset.requirement in told.stdout and asset.licence in told.stdout
    assert {name for name, asset in ASSETS.items() if asset.kind == "data"} == set(NAMED) - set(DERIVED)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_recipes_say_what_they_should_yield(name: str) -> None:
    told = " ".join(CliRunner().invoke(app, ["recipes"]).stdout.split())
    assert load(name).summary in told


def test_a_results_file_is_up_to_date_only_if_it_can_be_read_and_has_the_same_basis(tmp_path: Path) -> None:
    path, basis = tmp_path / "news.json", {"recipe_sha256": "a", "data_sha256": "b"}
    assert not _has(path, basis)
    for content in ("{", "[]", '{"recipe_sha256": "a"}', '{"recipe_sha256": "a", "data_sha256": "c"}'):
        path.write_text(content)
        assert not _has(path, basis)
    path.write_text('{"rows": 3, "recipe_sha256": "a", "data_sha256": "b"}')
    assert _has(path, basis)
