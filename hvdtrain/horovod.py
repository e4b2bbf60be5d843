"""Runs a program that was written for Horovod, unchanged, with hvdtrain in Horovod's place.

    python -m hvdtrain.horovod script.py [ARGUMENT...]
    horovodrun -np 2 python -m hvdtrain.horovod script.py [ARGUMENT...]

`-m MODULE` in place of the script runs a module. What the program imports as `horovod.torch`,
`horovod.tensorflow`, `horovod.keras` and `horovod.tensorflow.keras` are the packages of hvdtrain, and what it
has of Keras 2 is translated to Keras 3: see docs/from-horovod.md.
"""

import sys

from hvdtrain.core.dropin.program import run

# The second: a process that the program has started by multiprocessing, such as a DataLoader's worker.
if __name__ in ("__main__", "__mp_main__"):
    run(globals(), sys.argv[1:])
