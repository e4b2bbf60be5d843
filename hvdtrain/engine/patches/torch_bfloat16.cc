  // bfloat16, by every collective
#define DEF_BFLOAT16(name, on_cpu, on_gpu)                                     \
  m.def("horovod_torch_" name "_async_torch_BFloat16Tensor", &on_cpu);         \
  m.def("horovod_torch_" name "_async_torch_cuda_BFloat16Tensor", &on_gpu)
#if HOROVOD_GPU_ALLREDUCE
  DEF_BFLOAT16("allreduce", DoAllreduce, DoAllreduce);
  DEF_BFLOAT16("grouped_allreduce", DoGroupedAllreduce, DoGroupedAllreduce);
#else
  DEF_BFLOAT16("allreduce", DoAllreduce, DoAllreduceCudaOnCPU);
  DEF_BFLOAT16("grouped_allreduce", DoGroupedAllreduce,
               DoGroupedAllreduceCudaOnCPU);
#endif
#if HOROVOD_GPU_ALLGATHER
  DEF_BFLOAT16("allgather", DoAllgather, DoAllgather);
  DEF_BFLOAT16("grouped_allgather", DoGroupedAllgather, DoGroupedAllgather);
#else
  DEF_BFLOAT16("allgather", DoAllgather, DoAllgatherCudaOnCPU);
  DEF_BFLOAT16("grouped_allgather", DoGroupedAllgather,
               DoGroupedAllgatherCudaOnCPU);
#endif
#if HOROVOD_GPU_BROADCAST
  DEF_BFLOAT16("broadcast", DoBroadcast, DoBroadcast);
#else
  DEF_BFLOAT16("broadcast", DoBroadcast, DoBroadcastCudaOnCPU);
#endif
#if HOROVOD_GPU_ALLTOALL
  DEF_BFLOAT16("alltoall", DoAlltoall, DoAlltoall);
#else
  DEF_BFLOAT16("alltoall", DoAlltoall, DoAlltoallCudaOnCPU);
#endif
#if HOROVOD_GPU_REDUCESCATTER
  DEF_BFLOAT16("reducescatter", DoReducescatter, DoReducescatter);
  DEF_BFLOAT16("grouped_reducescatter", DoGroupedReducescatter,
               DoGroupedReducescatter);
#else
  DEF_BFLOAT16("reducescatter", DoReducescatter, DoReducescatterCudaOnCPU);
  DEF_BFLOAT16("grouped_reducescatter", DoGroupedReducescatter,
               DoGroupedReducescatterCudaOnCPU);
#endif
#undef DEF_BFLOAT16

  // join
  m.def("horovod_torch_join", &DoJoin);
