"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is slow now and then; that is no failure.
settings.register_profile("hvdtrain", deadline=None)
settings.load_profile("hvdtrain")
