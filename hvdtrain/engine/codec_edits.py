"""Codecs of 8 and 16 bits, each one pass over memory: tensor operations need a pass for each operation."""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

_WHY = "a codec made of tensor operations reads and writes the gradients several times"

# They stand behind the sums of halves, whose edits bring the types and the intrinsics that they use.
CODEC_EDITS = (
    Edit(
        "codecs-includes",
        "horovod/common/half.cc",
        "#include <algorithm>\n",
        "#include <algorithm>\n#include <cmath>\n",
        _WHY,
    ),
    Edit(
        "codecs",
        "horovod/common/half.cc",
        "} // namespace common\n} // namespace horovod\n",
        patch("int8_codecs.cc") + patch("half_codecs.cc"),
        _WHY,
    ),
    Edit(
        "codecs-torch",
        "horovod/torch/mpi_ops_v2.cc",
        "PYBIND11_MODULE(mpi_lib_v2, m) {\n",
        patch("torch_codecs.cc"),
        _WHY,
    ),
    Edit(
        "codecs-torch-includes",
        "horovod/torch/mpi_ops_v2.cc",
        "#include <chrono>\n",
        "#include <ATen/TensorIterator.h>\n#include <algorithm>\n#include <atomic>\n#include <chrono>\n"
        "#include <mutex>\n",
        _WHY,
    ),
    Edit(
        "codecs-tensorflow",
        "horovod/tensorflow/mpi_ops.cc",
        "} // namespace tensorflow\n} // namespace horovod\n",
        patch("tensorflow_codecs.cc"),
        _WHY,
    ),
    Edit(
        "codecs-tensorflow-includes",
        "horovod/tensorflow/mpi_ops.cc",
        "#include <algorithm>\n",
        "#include <algorithm>\n#include <atomic>\n#include <mutex>\n",
        _WHY,
    ),
)
