"""ViT as Hugging Face Transformers builds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import ViTConfig, ViTForImageClassification

from hvdtrain.core.families import vit
from hvdtrain.core.families.vit import ModelSpec
from hvdtrain.torch.families._images import for_each_target, pixels_of
from hvdtrain.torch.families._transformers import recompute_layers
from hvdtrain.torch.placeholders import place
from hvdtrain.torch.weights import Parameters
from hvdtrain.torch.world import device

# Since Transformers 5 modules have other names in memory than in files.
_IN_MEMORY = {
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


class Network:
    """`ViTForImageClassification`, whose classifier takes the [CLS] token."""

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        del compute_dtype  # autocast casts what enters matrix products
        config = ViTConfig(
            **model.model_dump(exclude={"dtype", "init_from", "model_type"}), attn_implementation="sdpa"
        )
        self._dtype = getattr(torch, model.dtype)
        self.module = place(ViTForImageClassification(config), self._dtype, device())
        if model.hidden_act == "gelu_new":
            _fuse_gelu_new(self.module)
        self.classes = model.num_labels
        found = dict(self.module.named_parameters())
        self.parameters: Parameters = {
            weight.name: found[weight.name if weight.name in found else _in_memory(weight.name)]
            for weight in vit.weights(model)
        }

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        recompute_layers(self.module)

    def features(self, inputs: Mapping[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The last hidden state of the [CLS] token, once for each target: (rows, targets, hidden_size)."""
        self.module.train(training)
        hidden = self.module.vit(pixel_values=pixels_of(inputs, self._dtype)).last_hidden_state
        return for_each_target(hidden[:, 0], inputs)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The classifier, (rows, targets, num_labels)."""
        return self.module.classifier(features)


def _in_memory(name: str) -> str:
    for saved, held in _IN_MEMORY.items():
        name = name.replace(saved, held)
    return name


def _fuse_gelu_new(module: torch.nn.Module) -> None:
    """Replace Transformers' gelu_new, a chain of Python operations, by one kernel with the same formula."""
    for name, child in module.named_children():
        if type(child).__name__ == "NewGELUActivation":
            setattr(module, name, torch.nn.GELU(approximate="tanh"))
        else:
            _fuse_gelu_new(child)
