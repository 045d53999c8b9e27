from __future__ import annotations

import pytest

from bundle.encode import Encoder
from tests.bundle.samples import make_encoder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return make_encoder()
