// Where messages cost more than their bytes. Two ranks send no more bytes this way than around a ring.
size_t fewBytes(int size) {
  return (size == 2 ? 256 : 16) << 10;
}

// Ranks exchange all of it in pairs, log2(size) times, where a ring takes 2 * (size - 1) turns of two messages.
// Those beyond the largest power of two hand theirs to another first, and are handed the result.
void exchange(
    const detail::AllreduceOptionsImpl& opts,
    ReduceRangeFunction reduceInputs,
    BroadcastRangeFunction broadcastOutputs) {
  const int rank = opts.context->rank;
  const int size = opts.context->size;
  const size_t bytes = opts.elements * opts.elementSize;
  const auto slot = Slot::build(kAllreduceSlotPrefix, opts.tag);
  transport::UnboundBuffer* mine = opts.out[0].get();
  std::unique_ptr<uint8_t[]> memory(new uint8_t[bytes]);
  auto theirs = opts.context->createUnboundBuffer(memory.get(), bytes);

  auto send = [&](int peer) {
    mine->send(peer, slot);
    mine->waitSend(opts.timeout);
  };
  auto reduce = [&](int peer) {
    // In the same order on both sides: which NaN a sum of two is depends on it.
    const bool first = rank < peer;
    opts.reduce(mine->ptr, first ? mine->ptr : theirs->ptr,
                first ? theirs->ptr : mine->ptr, opts.elements);
  };

  int paired = 1;
  while (paired * 2 <= size) {
    paired *= 2;
  }
  reduceInputs(0, bytes);
  if (rank >= paired) {
    send(rank - paired);
    mine->recv(rank - paired, slot);
    mine->waitRecv(opts.timeout);
  } else {
    const int beyond = rank + paired;
    if (beyond < size) {
      theirs->recv(beyond, slot);
      theirs->waitRecv(opts.timeout);
      reduce(beyond);
    }
    for (int distance = 1; distance < paired; distance *= 2) {
      const int peer = rank ^ distance;
      theirs->recv(peer, slot);
      send(peer);
      theirs->waitRecv(opts.timeout);
      reduce(peer);
    }
    if (beyond < size) {
      send(beyond);
    }
  }
  broadcastOutputs(0, bytes);
}

void allreduce(const detail::AllreduceOptionsImpl& opts) {
