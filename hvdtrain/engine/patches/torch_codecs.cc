namespace {

// TensorIterator shares the elements among PyTorch's threads. Each vector is contiguous, and so is each piece.
void EachPiece(const std::vector<::torch::Tensor>& outputs,
               const std::vector<::torch::Tensor>& inputs,
               const std::function<void(char**, int64_t)>& codec,
               int64_t fewest = at::internal::GRAIN_SIZE) {
  at::TensorIteratorConfig config;
  config.check_all_same_dtype(false).resize_outputs(false);
  for (auto& tensor : outputs) {
    config.add_output(tensor);
  }
  for (auto& tensor : inputs) {
    config.add_const_input(tensor);
  }
  config.build().for_each(
      [&](char** data, const int64_t* strides, int64_t n) { codec(data, n); }, fewest);
}

std::tuple<::torch::Tensor, int64_t> NarrowFloat16(::torch::Tensor flat, double scale, double limit) {
  auto halves = ::torch::empty(flat.sizes(), flat.options().dtype(::torch::kHalf));
  std::atomic<int64_t> clips{0};
  EachPiece({halves}, {flat}, [&](char** data, int64_t n) {
    clips += common::NarrowFloat16((uint16_t*)data[0], (const float*)data[1], scale, limit, n);
  });
  return {halves, clips};
}

double WidenFloat16(::torch::Tensor halves, double factor, ::torch::Tensor flat) {
  std::mutex mutex;
  uint16_t top = 0;
  bool past_cache = common::PastCache(flat.numel());
  EachPiece({flat}, {halves}, [&](char** data, int64_t n) {
    auto found = common::WidenFloat16((float*)data[0], (const uint16_t*)data[1], factor, n, past_cache);
    std::lock_guard<std::mutex> guard(mutex);
    top = std::max(top, found);
  });
  float largest;
  common::HalfBits2Float(&top, &largest);
  return largest * factor;
}

std::tuple<::torch::Tensor, ::torch::Tensor> ShortenBFloat16(::torch::Tensor flat, ::torch::Tensor residual) {
  auto sent = ::torch::empty(flat.sizes(), flat.options().dtype(::torch::kBFloat16));
  auto lost = ::torch::empty_like(flat);
  bool past_cache = common::PastCache(flat.numel());
  EachPiece({sent, lost}, {flat, residual}, [&](char** data, int64_t n) {
    common::ShortenBFloat16((common::BFloat16*)data[0], (float*)data[1],
                            (const float*)data[2], (const float*)data[3], n, past_cache);
  });
  return {sent, lost};
}

void LengthenBFloat16(::torch::Tensor sums, ::torch::Tensor flat) {
  bool past_cache = common::PastCache(flat.numel());
  EachPiece({flat}, {sums}, [&](char** data, int64_t n) {
    common::LengthenBFloat16((float*)data[0], (const common::BFloat16*)data[1], n, past_cache);
  });
}

// Rows are shared among threads too: a piece is one of their steps, which lie behind each other.
int64_t FewestRows(int64_t length) { return 1 + at::internal::GRAIN_SIZE / (1 + length); }

std::tuple<::torch::Tensor, ::torch::Tensor, ::torch::Tensor> QuantiseInt8(::torch::Tensor numbers, ::torch::Tensor noise) {
  auto length = numbers.size(1);
  auto steps = ::torch::empty({numbers.size(0)}, numbers.options());
  auto integers = ::torch::empty(numbers.sizes(), numbers.options().dtype(::torch::kChar));
  auto lost = ::torch::empty_like(numbers);
  auto first = steps.data_ptr<float>();
  EachPiece({steps}, {}, [&](char** data, int64_t rows) {
    auto at = ((float*)data[0] - first) * length;
    common::QuantiseInt8((float*)data[0], integers.data_ptr<int8_t>() + at, lost.data_ptr<float>() + at,
                         numbers.data_ptr<float>() + at, noise.data_ptr<float>() + at, rows, length);
  }, FewestRows(length));
  return {steps, integers, lost};
}

::torch::Tensor DequantiseInt8(::torch::Tensor steps, ::torch::Tensor integers) {
  auto length = integers.size(1);
  auto numbers = ::torch::empty(integers.sizes(), steps.options());
  // An output that nobody writes: TensorIterator wants one.
  auto first = steps.data_ptr<float>();
  EachPiece({steps}, {}, [&](char** data, int64_t rows) {
    auto at = ((float*)data[0] - first) * length;
    common::DequantiseInt8(numbers.data_ptr<float>() + at, (const float*)data[0],
                           integers.data_ptr<int8_t>() + at, rows, length);
  }, FewestRows(length));
  return numbers;
}

} // namespace

PYBIND11_MODULE(mpi_lib_v2, m) {
  // codecs of 8 and 16 bits, for contiguous float32 vectors on the CPU
  m.def("horovod_torch_narrow", &NarrowFloat16, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("horovod_torch_widen", &WidenFloat16, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("horovod_torch_quantise", &QuantiseInt8, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("horovod_torch_dequantise", &DequantiseInt8, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("horovod_torch_shorten", &ShortenBFloat16, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("horovod_torch_lengthen", &LengthenBFloat16, pybind11::call_guard<pybind11::gil_scoped_release>());

