// Codecs of 8 and 16 bits, for float32 vectors on the CPU.

namespace {

// Shares the elements among TensorFlow's threads; a nanosecond each is about what memory allows.
void EachPiece(OpKernelContext* context, int64_t n,
               const std::function<void(int64_t, int64_t)>& codec, int64_t nanoseconds = 1) {
  context->device()->tensorflow_cpu_worker_threads()->workers->ParallelFor(n, nanoseconds, codec);
}

} // namespace

class HorovodNarrowOp : public OpKernel {
public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor *halves, *clipped;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &halves));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({}), &clipped));
    auto in = context->input(0).flat<float>().data();
    auto out = (uint16_t*)halves->flat<Eigen::half>().data();
    auto scale = context->input(1).scalar<float>()(), limit = context->input(2).scalar<float>()();
    std::atomic<int64_t> clips{0};
    EachPiece(context, halves->NumElements(), [&](int64_t from, int64_t to) {
      clips += common::NarrowFloat16(out + from, in + from, scale, limit, to - from);
    });
    clipped->scalar<int64_t>()() = clips;
  }
};

class HorovodWidenOp : public OpKernel {
public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor *flat, *largest;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &flat));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({}), &largest));
    auto in = (const uint16_t*)context->input(0).flat<Eigen::half>().data();
    auto out = flat->flat<float>().data();
    auto factor = context->input(1).scalar<float>()();
    std::mutex mutex;
    uint16_t top = 0;
    bool past_cache = common::PastCache(flat->NumElements());
    EachPiece(context, flat->NumElements(), [&](int64_t from, int64_t to) {
      auto found = common::WidenFloat16(out + from, in + from, factor, to - from, past_cache);
      std::lock_guard<std::mutex> guard(mutex);
      top = std::max(top, found);
    });
    common::HalfBits2Float(&top, &largest->scalar<float>()());
    largest->scalar<float>()() *= factor;
  }
};

class HorovodShortenOp : public OpKernel {
public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor *sent, *lost;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &sent));
    OP_REQUIRES_OK(context, context->allocate_output(1, context->input(0).shape(), &lost));
    auto flat = context->input(0).flat<float>().data(), residual = context->input(1).flat<float>().data();
    auto rounded = (common::BFloat16*)sent->flat<Eigen::bfloat16>().data();
    auto rest = lost->flat<float>().data();
    bool past_cache = common::PastCache(sent->NumElements());
    EachPiece(context, sent->NumElements(), [&](int64_t from, int64_t to) {
      common::ShortenBFloat16(rounded + from, rest + from, flat + from, residual + from, to - from, past_cache);
    });
  }
};

class HorovodLengthenOp : public OpKernel {
public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor* flat;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &flat));
    auto sums = (const common::BFloat16*)context->input(0).flat<Eigen::bfloat16>().data();
    auto out = flat->flat<float>().data();
    bool past_cache = common::PastCache(flat->NumElements());
    EachPiece(context, flat->NumElements(), [&](int64_t from, int64_t to) {
      common::LengthenBFloat16(out + from, sums + from, to - from, past_cache);
    });
  }
};

class HorovodQuantiseOp : public OpKernel {
public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor *steps, *integers, *lost;
    auto& shape = context->input(0).shape();
    auto rows = shape.dim_size(0), length = shape.dim_size(1);
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({rows}), &steps));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &integers));
    OP_REQUIRES_OK(context, context->allocate_output(2, shape, &lost));
    auto numbers = context->input(0).flat<float>().data(), noise = context->input(1).flat<float>().data();
    auto step = steps->flat<float>().data(), rest = lost->flat<float>().data();
    auto whole = (int8_t*)integers->flat<int8>().data();
    EachPiece(context, rows, [&](int64_t from, int64_t to) {
      auto at = from * length;
      common::QuantiseInt8(step + from, whole + at, rest + at, numbers + at, noise + at, to - from, length);
    }, length);
  }
};

class HorovodDequantiseOp : public OpKernel {
public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor* numbers;
    auto& shape = context->input(1).shape();
    auto rows = shape.dim_size(0), length = shape.dim_size(1);
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &numbers));
    auto steps = context->input(0).flat<float>().data();
    auto whole = (const int8_t*)context->input(1).flat<int8>().data();
    auto out = numbers->flat<float>().data();
    EachPiece(context, rows, [&](int64_t from, int64_t to) {
      auto at = from * length;
      common::DequantiseInt8(out + at, steps + from, whole + at, to - from, length);
    }, length);
  }
};

REGISTER_KERNEL_BUILDER(Name("HorovodQuantise").Device(DEVICE_CPU), HorovodQuantiseOp);
REGISTER_KERNEL_BUILDER(Name("HorovodDequantise").Device(DEVICE_CPU), HorovodDequantiseOp);
REGISTER_KERNEL_BUILDER(Name("HorovodNarrow").Device(DEVICE_CPU), HorovodNarrowOp);
REGISTER_KERNEL_BUILDER(Name("HorovodWiden").Device(DEVICE_CPU), HorovodWidenOp);
REGISTER_KERNEL_BUILDER(Name("HorovodShorten").Device(DEVICE_CPU), HorovodShortenOp);
REGISTER_KERNEL_BUILDER(Name("HorovodLengthen").Device(DEVICE_CPU), HorovodLengthenOp);

REGISTER_OP("HorovodNarrow")
    .Input("flat: float32")
    .Input("scale: float32")
    .Input("limit: float32")
    .Output("halves: half")
    .Output("clips: int64")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->input(0));
      c->set_output(1, c->Scalar());
      return Status();
    });

REGISTER_OP("HorovodWiden")
    .Input("halves: half")
    .Input("factor: float32")
    .Output("flat: float32")
    .Output("largest: float32")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->input(0));
      c->set_output(1, c->Scalar());
      return Status();
    });

REGISTER_OP("HorovodShorten")
    .Input("flat: float32")
    .Input("residual: float32")
    .Output("sent: bfloat16")
    .Output("lost: float32")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(0));
      return Status();
    });

REGISTER_OP("HorovodLengthen")
    .Input("sums: bfloat16")
    .Output("flat: float32")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->input(0));
      return Status();
    });

REGISTER_OP("HorovodQuantise")
    .Input("numbers: float32")
    .Input("noise: float32")
    .Output("steps: float32")
    .Output("integers: int8")
    .Output("lost: float32")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->Vector(c->Dim(c->input(0), 0)));
      c->set_output(1, c->input(0));
      c->set_output(2, c->input(0));
      return Status();
    });

REGISTER_OP("HorovodDequantise")
    .Input("steps: float32")
    .Input("integers: int8")
    .Output("numbers: float32")
    .SetShapeFn([](shape_inference::InferenceContext* c) {
      c->set_output(0, c->input(1));
      return Status();
    });

} // namespace tensorflow
} // namespace horovod
