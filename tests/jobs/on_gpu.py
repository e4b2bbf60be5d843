"""on_gpu.py PROGRAM [ARGUMENT...]: runs a Python program as a rank that may share its GPU with others.

NCCL refuses two ranks on one GPU of one host; so each says that it is another host, and they talk by sockets.
"""

import os
import runpy
import sys
from pathlib import Path

import torch

assert torch.cuda.is_available(), "wire='nccl' needs a GPU that torch can use"
os.environ["NCCL_HOSTID"] = f"rank{os.environ['HOROVOD_RANK']}"
os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
runpy.run_path(sys.argv[0], run_name="__main__")
