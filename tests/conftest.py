"""Settings for every test."""

from __future__ import annotations

import os

from hypothesis import settings

from tests.jobs.standing import end_all

# A busy machine is slow now and then; that is no failure.
settings.register_profile("hvdtrain", deadline=None)
settings.load_profile("hvdtrain")
# Tests start hundreds of processes: not each has to compile our modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_sessionfinish() -> None:
    """End the ranks that stayed between tests."""
    end_all()
