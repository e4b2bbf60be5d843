"""Fine-tune BERT in TensorFlow: horovodrun -np 8 python tf_jobs/fine_tune_bert.py [--spec F] [--set F=V]."""

from hvdtrain.tensorflow.job import main

if __name__ == "__main__":
    main(default_spec="bert-classify")
