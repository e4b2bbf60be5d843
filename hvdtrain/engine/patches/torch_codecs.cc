namespace {

// TensorIterator shares the elements among PyTorch's threads. Each vector is contiguous, and so is each piece.
void EachPiece(const std::vector<::torch::Tensor>& outputs,
               const std::vector<::torch::Tensor>& inputs,
               const std::function<void(char**, int64_t)>& codec) {
  at::TensorIteratorConfig config;
  config.check_all_same_dtype(false).resize_outputs(false);
  for (auto& tensor : outputs) {
    config.add_output(tensor);
  }
  for (auto& tensor : inputs) {
    config.add_const_input(tensor);
  }
  config.build().for_each(
      [&](char** data, const int64_t* strides, int64_t n) { codec(data, n); });
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
  EachPiece({flat}, {halves}, [&](char** data, int64_t n) {
    auto found = common::WidenFloat16((float*)data[0], (const uint16_t*)data[1], factor, n);
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
  EachPiece({sent, lost}, {flat, residual}, [&](char** data, int64_t n) {
    common::ShortenBFloat16((common::BFloat16*)data[0], (float*)data[1],
                            (const float*)data[2], (const float*)data[3], n);
  });
  return {sent, lost};
}

} // namespace

PYBIND11_MODULE(mpi_lib_v2, m) {
  // codecs of 16-bit wires, for contiguous float32 vectors on the CPU
  m.def("horovod_torch_narrow", &NarrowFloat16, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("horovod_torch_widen", &WidenFloat16, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("horovod_torch_shorten", &ShortenBFloat16, pybind11::call_guard<pybind11::gil_scoped_release>());

