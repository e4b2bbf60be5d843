"""Callbacks for `fit`; what Horovod calls otherwise has that name as well.

Any of them makes ranks agree before the first step, and counts samples for `average="samples"`.
"""

from hvdtrain.keras.callbacks.broadcast import BroadcastGlobalVariables
from hvdtrain.keras.callbacks.checkpoint import Checkpoint
from hvdtrain.keras.callbacks.learning_rate import LearningRateSchedule, LearningRateWarmup
from hvdtrain.keras.callbacks.metrics import MetricAverage
from hvdtrain.keras.callbacks.progress import BestModel, ProgressBar
from hvdtrain.keras.callbacks.stall import StallGuard

BroadcastGlobalVariablesCallback = BroadcastGlobalVariables
MetricAverageCallback = MetricAverage
LearningRateScheduleCallback = LearningRateSchedule
LearningRateWarmupCallback = LearningRateWarmup
BestModelCheckpoint = BestModel

__all__ = [
    "BestModel",
    "BestModelCheckpoint",
    "BroadcastGlobalVariables",
    "BroadcastGlobalVariablesCallback",
    "Checkpoint",
    "LearningRateSchedule",
    "LearningRateScheduleCallback",
    "LearningRateWarmup",
    "LearningRateWarmupCallback",
    "MetricAverage",
    "MetricAverageCallback",
    "ProgressBar",
    "StallGuard",
]
