"""Death at every I/O of every scene, none left out."""

import pytest

from tests.fault.test_crash_everywhere import SCENES, Theatre, theatre

__all__ = ["theatre"]  # fixture


@pytest.mark.parametrize("name", SCENES)
async def test_an_engine_that_dies_at_any_io_loses_and_repeats_nothing(theatre: Theatre, name: str) -> None:
    await theatre.die_at(SCENES[name], await theatre.points(SCENES[name]))
