"""Train a ResNet in PyTorch: horovodrun -np 8 python torch_jobs/train_resnet.py [--spec FILE] [--set F=V]."""

from hvdtrain.torch.job import main

if __name__ == "__main__":
    main(default_spec="resnet")
