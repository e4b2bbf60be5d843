"""Made by `make stubs` from the real names: not to be edited."""

from typing import Any

from horovod.common.exceptions import HorovodInternalError as HorovodInternalError
from horovod.common.process_sets import ProcessSet as ProcessSet
from horovod.torch.compression import Compression as Compression

from hvdtrain.torch import elastic as elastic
from hvdtrain.torch.dropin.checkpoint import Checkpoint as Checkpoint
from hvdtrain.torch.dropin.joining import join as join
from hvdtrain.torch.dropin.loader import DataLoader as DataLoader
from hvdtrain.torch.dropin.optimizer import DistributedOptimizer as DistributedOptimizer
from hvdtrain.torch.dropin.sampler import DistributedSampler as DistributedSampler
from hvdtrain.torch.dropin.session import init as init
from hvdtrain.torch.dropin.session import metric_average as metric_average
from hvdtrain.torch.dropin.state import broadcast_optimizer_state as broadcast_optimizer_state
from hvdtrain.torch.dropin.state import broadcast_parameters as broadcast_parameters
from hvdtrain.torch.dropin.sync_batch_norm import SyncBatchNorm as SyncBatchNorm

Adasum: int
Average: int
Max: int
Min: int
Product: int
Sum: int

def add_process_set(process_set: Any) -> Any: ...
def allgather(tensor: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def allgather_async(tensor: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def allgather_object(obj: Any, name: Any = ...) -> Any: ...
def allreduce(
    tensor: Any,
    average: Any = ...,
    name: Any = ...,
    compression: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def allreduce_(
    tensor: Any,
    average: Any = ...,
    name: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def allreduce_async(
    tensor: Any,
    average: Any = ...,
    name: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def allreduce_async_(
    tensor: Any,
    average: Any = ...,
    name: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def alltoall(tensor: Any, splits: Any = ..., name: Any = ..., process_set: Any = ...) -> Any: ...
def alltoall_async(tensor: Any, splits: Any = ..., name: Any = ..., process_set: Any = ...) -> Any: ...
def barrier(process_set: Any = ...) -> Any: ...
def broadcast(tensor: Any, root_rank: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def broadcast_(tensor: Any, root_rank: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def broadcast_async(tensor: Any, root_rank: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def broadcast_async_(tensor: Any, root_rank: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def broadcast_object(obj: Any, root_rank: Any = ..., name: Any = ..., process_set: Any = ...) -> Any: ...
def ccl_built() -> bool: ...
def check_extension(ext_name: Any, ext_env_var: Any, pkg_path: Any, *args: Any) -> Any: ...
def cross_rank() -> int: ...
def cross_size() -> int: ...
def cuda_built() -> bool: ...
def ddl_built() -> bool: ...

global_process_set: Any

def gloo_built() -> bool: ...
def gloo_enabled() -> bool: ...
def grouped_allgather(tensors: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def grouped_allgather_async(tensors: Any, name: Any = ..., process_set: Any = ...) -> Any: ...
def grouped_allreduce(
    tensors: Any,
    average: Any = ...,
    name: Any = ...,
    compression: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def grouped_allreduce_(
    tensors: Any,
    average: Any = ...,
    name: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def grouped_allreduce_async(
    tensors: Any,
    average: Any = ...,
    name: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def grouped_allreduce_async_(
    tensors: Any,
    average: Any = ...,
    name: Any = ...,
    op: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
    process_set: Any = ...,
) -> Any: ...
def grouped_reducescatter(
    tensors: Any,
    name: Any = ...,
    compression: Any = ...,
    op: Any = ...,
    process_set: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
) -> Any: ...
def grouped_reducescatter_async(
    tensors: Any,
    name: Any = ...,
    op: Any = ...,
    process_set: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
) -> Any: ...
def is_initialized() -> bool: ...
def local_rank() -> int: ...
def local_size() -> int: ...
def mpi_built() -> bool: ...
def mpi_enabled() -> bool: ...
def mpi_threads_supported() -> bool: ...
def nccl_built() -> bool: ...
def poll(handle: Any) -> Any: ...
def rank() -> int: ...
def reducescatter(
    tensor: Any,
    name: Any = ...,
    compression: Any = ...,
    op: Any = ...,
    process_set: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
) -> Any: ...
def reducescatter_async(
    tensor: Any,
    name: Any = ...,
    op: Any = ...,
    process_set: Any = ...,
    prescale_factor: Any = ...,
    postscale_factor: Any = ...,
) -> Any: ...
def remove_process_set(process_set: Any) -> Any: ...
def rocm_built() -> bool: ...
def shutdown(*args: Any, **kwargs: Any) -> Any: ...
def size() -> int: ...
def sparse_allreduce_async(tensor: Any, name: Any, op: Any, process_set: Any = ...) -> Any: ...
def start_timeline(file_path: Any, mark_cycles: Any = ...) -> Any: ...
def stop_timeline() -> Any: ...
def synchronize(handle: Any) -> Any: ...
