from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import POLICY
from tests.unit.service.world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    made.apply(POLICY)
    yield made
    made.ledger.close()
