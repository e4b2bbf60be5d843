"""Model families of Keras' own layers: a saved one opens wherever Keras is, without hvdtrain."""
