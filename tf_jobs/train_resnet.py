"""Train a ResNet in TensorFlow: horovodrun -np 8 python tf_jobs/train_resnet.py [--spec FILE] [--set F=V]."""

from hvdtrain.tensorflow.job import main

if __name__ == "__main__":
    main(default_spec="resnet")
