namespace {

std::mutex arrival_mutex;
std::condition_variable arrival;
uint64_t arrivals_so_far = 0;

void Announce() {
  {
    std::lock_guard<std::mutex> guard(arrival_mutex);
    ++arrivals_so_far;
  }
  arrival.notify_one();
}

} // namespace

bool TensorQueue::HasTensors() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return !tensor_table_.empty();
}

uint64_t TensorQueue::Arrivals() {
  std::lock_guard<std::mutex> guard(arrival_mutex);
  return arrivals_so_far;
}

void TensorQueue::WaitForArrival(uint64_t arrivals, std::chrono::steady_clock::time_point until) {
  std::unique_lock<std::mutex> lock(arrival_mutex);
  arrival.wait_until(lock, until, [&] { return arrivals_so_far != arrivals; });
}

// Add a TensorTableEntry as well as its message to the queue.
