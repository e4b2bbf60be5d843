"""Where each weight of a BERT lives in KerasHub's model."""

from __future__ import annotations

from hvdtrain.core.families.bert import (
    CLASSIFIER,
    DECODER,
    EMBEDDINGS,
    LAYER,
    POOLER,
    TIED_BIAS,
    ModelSpec,
    weights,
)


def keras_paths(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Where each weight lives in `keras_hub`'s `BertBackbone` + `MaskedLMHead` (named `mlm_head`).

    With a classifier, in that backbone and a dense layer `logits`, as in `keras_hub`'s `BertTextClassifier`.

    Args:
        model: the hyper-parameters.

    Returns:
        The paths of the Keras variables that hold a weight, by its Hugging Face name.
    """
    layers = {hf: keras for hf, (keras, _) in EMBEDDINGS.items()}
    layers["bert.embeddings.LayerNorm"] = "embeddings_layer_norm"
    for i in range(model.num_hidden_layers):
        layers |= {
            f"bert.encoder.layer.{i}.{hf}": f"transformer_layer_{i}/{keras}" for hf, keras in LAYER.items()
        }
    layers |= {POOLER: "pooled_dense", CLASSIFIER: "logits"}
    layers["cls.predictions.transform.dense"] = "mlm_head/intermediate_dense"
    layers["cls.predictions.transform.LayerNorm"] = "mlm_head/intermediate_layer_norm"
    paths = (
        {TIED_BIAS: "mlm_head/output_bias"}
        if model.tie_word_embeddings
        else {f"{DECODER}.weight": "mlm_head/output_kernel", f"{DECODER}.bias": "mlm_head/output_bias"}
    )
    names = [weight.name for weight in weights(model)]
    for name in names:
        if name not in paths:
            module, leaf = name.rsplit(".", 1)
            paths[name] = f"{layers[module]}/{_keras_leaf(module, leaf)}"
    return {name: (paths[name],) for name in names}


def _keras_leaf(module: str, leaf: str) -> str:
    if "_embeddings" in module:
        return "embeddings"
    if module.endswith("LayerNorm"):
        return {"weight": "gamma", "bias": "beta"}[leaf]
    return {"weight": "kernel", "bias": "bias"}[leaf]
