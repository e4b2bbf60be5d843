"""Drop-in use, for loops of the user's own: what the wrappers' arguments mean, in either framework."""

from hvdtrain.core.dropin.agreement import check_gathered, check_same, describe, digest
from hvdtrain.core.dropin.layout import Parameter, accumulator, lay_out
from hvdtrain.core.dropin.sampling import share_length, share_of_epoch
from hvdtrain.core.dropin.settings import Settings, make_settings

__all__ = [
    "Parameter",
    "Settings",
    "accumulator",
    "check_gathered",
    "check_same",
    "describe",
    "digest",
    "lay_out",
    "make_settings",
    "share_length",
    "share_of_epoch",
]
