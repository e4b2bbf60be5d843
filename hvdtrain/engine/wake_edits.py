"""Horovod's background loop wakes when a tensor arrives, where it slept its cycle out.

HOROVOD_CYCLE_TIME stays what it was for ranks that have nothing to send: how seldom they look. A rank with
something to send looks at once, though not twice within a millisecond (Horovod's own default cycle), so that
tensors that come together are still sent together.
"""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

_WHY = "each collective waits half a cycle on average, and policies with two collectives wait twice"

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
)
