  void RemoveJoinTensor();

  // Whether tensors wait to be sent, or for other ranks.
  bool HasTensors() const;

  // How often tensors were added to any queue of this process.
  static uint64_t Arrivals();

  // Returns when that is another number, at the latest at a point in time.
  static void WaitForArrival(uint64_t arrivals, std::chrono::steady_clock::time_point until);
