"""The settlement engine's rig, for books that are held against what it did."""

from tests.integration.settlement.conftest import start_engine

__all__ = ["start_engine"]
