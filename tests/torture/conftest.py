"""The unbroken study that broken ones are held to."""

import pytest
from workflow.conftest import finished

from .slices import slice_of

__all__ = ["finished"]


@pytest.fixture(scope="session")
def unbroken(finished, tmp_path_factory):
    """The slice of the smoke study that was run once for all tests."""
    return slice_of(finished, tmp_path_factory.mktemp("torture") / "unbroken")
