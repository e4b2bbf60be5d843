"""Errors for the person who runs a job: each says where, what was expected, what was found, what to do."""

from __future__ import annotations


class HvdtrainError(Exception):
    """Base of every error whose text alone is shown to the user, without a traceback."""


class SpecError(HvdtrainError):
    """A job spec, an override or a plan made from them cannot be used."""


class DataError(HvdtrainError):
    """A corpus, tokenizer or data cache cannot be read, used or written."""


class EngineError(HvdtrainError):
    """Horovod cannot be built, is missing, or does not fit the installed frameworks."""


class LaunchError(HvdtrainError):
    """A job cannot be started on the hosts asked for."""


class CheckpointError(HvdtrainError):
    """A model or training state cannot be written or read."""


class DamagedError(CheckpointError):
    """A checkpoint has lost a file, or holds other bytes than were saved: it is of no use any more."""


class TrainingError(HvdtrainError):
    """Training cannot go on: diverged, or a rank disagrees with the others."""
