// bfloat16 and its operations, which MPI does not have.
struct MPIBFloat16 {
  MPI_Datatype type = MPI_DATATYPE_NULL;
  MPI_Op sum = MPI_OP_NULL;
  MPI_Op min = MPI_OP_NULL;
  MPI_Op max = MPI_OP_NULL;
  MPI_Op prod = MPI_OP_NULL;

  void Create() {
    MPI_Type_contiguous(2, MPI_BYTE, &type);
    MPI_Type_commit(&type);
    MPI_Op_create(&bfloat16_sum, 1, &sum);
    MPI_Op_create(&bfloat16_min, 1, &min);
    MPI_Op_create(&bfloat16_max, 1, &max);
    MPI_Op_create(&bfloat16_prod, 1, &prod);
  }

  void Free() {
    if (type == MPI_DATATYPE_NULL) {
      return;
    }
    MPI_Type_free(&type);
    for (auto* op : {&sum, &min, &max, &prod}) {
      MPI_Op_free(op);
    }
  }
};

struct MPIContext {
