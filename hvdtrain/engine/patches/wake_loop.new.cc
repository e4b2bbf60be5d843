  auto cycle = std::chrono::microseconds(
      long(state.parameter_manager.CycleTimeMs() * 1000.));
  auto shortest = std::min(cycle, std::chrono::microseconds(1000));
  // Read before looking: what arrives in between then ends the wait.
  auto arrivals = TensorQueue::Arrivals();
  bool waiting = false;
  for (auto process_set_id : state.process_set_table.Ids()) {
    waiting = waiting || state.process_set_table.Get(process_set_id)
                             .tensor_queue.HasTensors();
  }
  if (!waiting) {
    TensorQueue::WaitForArrival(arrivals, state.last_cycle_start + cycle);
  }
  std::this_thread::sleep_until(state.last_cycle_start + shortest);
