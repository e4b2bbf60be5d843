from hvdtrain.keras.callbacks.base import Callback


class StallGuard(Callback):
    pass
