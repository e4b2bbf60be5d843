"""on_gpu.py PROGRAM [ARGUMENT...]: runs a Python program as a rank that may share its GPU with others.

NCCL refuses two ranks on one GPU of one host; so each says that it is another host, and they talk by sockets.
"""

import importlib
import os
import runpy
import sys
from pathlib import Path

from tests.jobs.runs import INSTALLED

os.environ["NCCL_HOSTID"] = f"rank{os.environ['HOROVOD_RANK']}"
os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
# TensorFlow takes all of a GPU's memory otherwise.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def sees_gpu(framework: str) -> bool:
    module = importlib.import_module(framework)
    return bool(
        module.cuda.is_available() if framework == "torch" else module.config.list_physical_devices("GPU")
    )


for name in INSTALLED:
    assert sees_gpu(name), f"wire='nccl' needs a GPU that {name} can use"
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
runpy.run_path(sys.argv[0], run_name="__main__")
