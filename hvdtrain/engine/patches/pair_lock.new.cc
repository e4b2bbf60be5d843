  if (!lock) {
    // Who holds it may wait for this core, where the next tick would ask again at once. No longer than a moment, for
    // the deadlocks said above.
    timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 1000 * 1000;
    if (until.tv_nsec >= 1000 * 1000 * 1000) {
      until.tv_nsec -= 1000 * 1000 * 1000;
      until.tv_sec += 1;
    }
    if (pthread_mutex_timedlock(m_.native_handle(), &until) != 0) {
      return;
    }
    lock = std::unique_lock<std::mutex>(m_, std::adopt_lock);
    if (state_ == CLOSED) {
      return;
    }
  }

  // State must be <= CONNECTED.
