"""Drop-in use, for loops of the user's own: what the wrappers' arguments mean, in either framework."""

from hvdtrain.core.dropin.agreement import check_gathered, check_same, describe, digest
from hvdtrain.core.dropin.joining import check_join, known_to_all
from hvdtrain.core.dropin.layout import Parameter, accumulator, lay_out
from hvdtrain.core.dropin.owners import Owners
from hvdtrain.core.dropin.residuals import keeps_residuals, residuals_are_scaled
from hvdtrain.core.dropin.sampling import share_length, share_of_epoch
from hvdtrain.core.dropin.settings import Settings, make_settings
from hvdtrain.core.dropin.spelling import Horovod, by_position, process_set_of, settings_of
from hvdtrain.core.dropin.waiting import left_alone

__all__ = [
    "Horovod",
    "Owners",
    "Parameter",
    "Settings",
    "accumulator",
    "by_position",
    "check_gathered",
    "check_join",
    "check_same",
    "describe",
    "digest",
    "keeps_residuals",
    "known_to_all",
    "lay_out",
    "left_alone",
    "make_settings",
    "process_set_of",
    "residuals_are_scaled",
    "settings_of",
    "share_length",
    "share_of_epoch",
]
