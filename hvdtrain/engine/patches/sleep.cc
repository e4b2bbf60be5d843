void HandleManager::Wait(int handle) {
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] {
    auto found = results_.find(handle);
    return found == results_.end() || found->second != nullptr;
  });
}

std::shared_ptr<Status> HandleManager::ReleaseHandle(int handle) {
