"""A rank that works for ever until one of them, told by the arguments, fails: FAULT RANK PID_FOLDER."""

import os
import signal
import sys
import time
from pathlib import Path

import horovod.torch as hvd
import torch

fault, failing, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
hvd.init()
(folder / f"{hvd.rank()}.pid").write_text(str(os.getpid()))
step = 0
while True:
    hvd.allreduce(torch.ones(10), op=hvd.Sum, name="step")
    step += 1
    if step == 5 and hvd.rank() == 0:
        (folder / "working").touch()
    if step == 10 and hvd.rank() == failing:
        print(f"FAILING {time.time()}", flush=True)
        if fault in ("raise", "raise-while-others-compute"):
            raise ValueError("planned failure")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if step == 10 and fault == "raise-while-others-compute":
        time.sleep(10_000)
    time.sleep(0.01)
