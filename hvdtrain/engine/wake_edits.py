"""Who waits in Horovod sleeps, and is woken by what he waits for.

The background loop wakes when a tensor arrives, where it slept its cycle out.
HOROVOD_CYCLE_TIME stays what it was for ranks that have nothing to send: how seldom they look. A rank with
something to send looks at once, though not twice within a millisecond (Horovod's own default cycle), so that
tensors that come together are still sent together.

PyTorch's `synchronize` sleeps until the tensor is there, where it asked for it again and again: on a host
with a core a rank, that core is what Horovod's own threads need to bring the tensor.
"""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

_WHY = "each collective waits half a cycle on average, and policies with two collectives wait twice"

_WHY_ASLEEP = "a rank that waits takes the core from Horovod's threads, which it waits for"

WAKE_EDITS = (
    Edit(
        "wake-includes",
        "horovod/common/tensor_queue.h",
        "#include <iostream>\n",
        "#include <chrono>\n#include <condition_variable>\n#include <iostream>\n",
        _WHY,
    ),
    Edit(
        "wake-declaration",
        "horovod/common/tensor_queue.h",
        "  void RemoveJoinTensor();\n",
        patch("wake.h"),
        _WHY,
    ),
    Edit(
        "wake-definition",
        "horovod/common/tensor_queue.cc",
        "// Add a TensorTableEntry as well as its message to the queue.\n",
        patch("wake.cc"),
        _WHY,
    ),
    Edit(
        "wake-for-one",
        "horovod/common/tensor_queue.cc",
        "  message_queue_.push(std::move(message));\n  return Status::OK();\n",
        "  message_queue_.push(std::move(message));\n  Announce();\n  return Status::OK();\n",
        _WHY,
    ),
    Edit(
        "wake-for-several",
        "horovod/common/tensor_queue.cc",
        "    message_queue_.push(std::move(messages[i]));\n  }\n",
        "    message_queue_.push(std::move(messages[i]));\n  }\n  Announce();\n",
        _WHY,
    ),
    Edit(
        "wake-loop",
        "horovod/common/operations.cc",
        patch("wake_loop.old.cc"),
        patch("wake_loop.new.cc"),
        _WHY,
    ),
    Edit(
        "sleep-includes",
        "horovod/torch/handle_manager.h",
        "#include <atomic>\n",
        "#include <atomic>\n#include <condition_variable>\n",
        _WHY_ASLEEP,
    ),
    Edit(
        "sleep-declaration",
        "horovod/torch/handle_manager.h",
        "  bool PollHandle(int handle);\n",
        "  bool PollHandle(int handle);\n"
        "  // Returns when the handle is done, or is none.\n"
        "  void Wait(int handle);\n",
        _WHY_ASLEEP,
    ),
    Edit(
        "sleep-condition",
        "horovod/torch/handle_manager.h",
        "  std::mutex mutex_;\n",
        "  std::mutex mutex_;\n  std::condition_variable done_;\n",
        _WHY_ASLEEP,
    ),
    Edit(
        "sleep-definition",
        "horovod/torch/handle_manager.cc",
        "std::shared_ptr<Status> HandleManager::ReleaseHandle(int handle) {\n",
        patch("sleep.cc"),
        _WHY_ASLEEP,
    ),
    Edit(
        "sleep-ends",
        "horovod/torch/handle_manager.cc",
        "  results_[handle] = std::make_shared<Status>(status);\n",
        "  results_[handle] = std::make_shared<Status>(status);\n  done_.notify_all();\n",
        _WHY_ASLEEP,
    ),
    Edit(
        "sleep-ends-for-all",
        "horovod/torch/handle_manager.cc",
        "  results_.clear();\n",
        "  results_.clear();\n  done_.notify_all();\n",
        _WHY_ASLEEP,
    ),
    Edit(
        "sleep",
        "horovod/torch/mpi_ops_v2.cc",
        patch("sleep.old.cc"),
        patch("sleep.new.cc"),
        _WHY_ASLEEP,
    ),
)
