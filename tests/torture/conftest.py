"""The unbroken run that broken ones are held to."""

import pytest

from .rounds import run_unbroken
from .slices import COMMAND, make_slice


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The slice, run to its end, and how long its processes live."""
    project = make_slice(tmp_path_factory.mktemp("torture") / "unbroken")
    return project, run_unbroken(project, COMMAND)
