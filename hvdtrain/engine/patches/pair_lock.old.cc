  if (!lock) {
    return;
  }

  // State must be <= CONNECTED.
