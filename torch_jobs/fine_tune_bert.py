"""Fine-tune BERT in PyTorch: horovodrun -np 8 python torch_jobs/fine_tune_bert.py [--spec F] [--set F=V]."""

from hvdtrain.torch.job import main

if __name__ == "__main__":
    main(default_spec="bert-classify")
