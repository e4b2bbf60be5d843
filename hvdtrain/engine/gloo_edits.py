"""What makes Gloo slow where collectives are small or cores are few.

Gloo is built from the sources that Horovod 0.28.1 carries.
"""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

_ALLREDUCE = "third_party/gloo/gloo/allreduce.cc"

_FEW_BYTES = (
    "a ring of n ranks takes 2 (n - 1) turns of two messages, each agreed on first, however little is summed"
)

GLOO_EDITS = (
    Edit(
        "gloo-lock",
        "third_party/gloo/gloo/transport/tcp/pair.cc",
        patch("pair_lock.old.cc"),
        patch("pair_lock.new.cc"),
        "a receiving thread that asks for a held lock without pause takes the core from the holder: 4 ms",
    ),
    Edit(
        "gloo-few-bytes",
        _ALLREDUCE,
        "void allreduce(const detail::AllreduceOptionsImpl& opts) {\n",
        patch("few_bytes.cc"),
        _FEW_BYTES,
    ),
    Edit(
        "gloo-few-bytes-choice",
        _ALLREDUCE,
        "  switch (opts.algorithm) {\n",
        "  if (opts.algorithm == detail::AllreduceOptionsImpl::UNSPECIFIED &&\n"
        "      totalBytes <= fewBytes(context->size)) {\n"
        "    exchange(opts, reduceInputs, broadcastOutputs);\n"
        "    return;\n"
        "  }\n\n"
        "  switch (opts.algorithm) {\n",
        _FEW_BYTES,
    ),
)
