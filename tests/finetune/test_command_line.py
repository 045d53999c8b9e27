"""What the finetune command line lists without training anything."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from finetune.__main__ import app
from finetune.data.assets import ASSETS
from finetune.data.named import DERIVED, NAMED
from finetune.recipe import load, shipped

WIDE = {"COLUMNS": "400", "TERM": "dumb"}


def test_data_lists_every_asset_with_its_licence() -> None:
    told = CliRunner().invoke(app, ["data"], env=WIDE)
    assert told.exit_code == 0
    for asset in ASSETS.values():
        assert asset.requirement in told.stdout and asset.licence in told.stdout
    assert {name for name, asset in ASSETS.items() if asset.kind == "data"} == set(NAMED) - set(DERIVED)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_recipes_say_what_they_should_yield(name: str) -> None:
    told = " ".join(CliRunner().invoke(app, ["recipes"], env=WIDE).stdout.split())
    assert load(name).summary in told
