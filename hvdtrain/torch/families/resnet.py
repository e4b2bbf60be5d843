"""ResNet as Hugging Face Transformers builds it, with batch norm over real rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import ResNetConfig, ResNetForImageClassification

from hvdtrain.core.families import resnet
from hvdtrain.core.families.batch_norm import EPSILON, recomputing
from hvdtrain.core.families.resnet import ModelSpec
from hvdtrain.torch.batch_norm import batch_norm, keep
from hvdtrain.torch.families._images import for_each_target, pixels_of
from hvdtrain.torch.placeholders import place
from hvdtrain.torch.weights import Parameters
from hvdtrain.torch.world import device


class Network:
    """`ResNetForImageClassification`."""

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        del compute_dtype  # autocast casts what enters convolutions
        config = ResNetConfig(**resnet.hf_config(model))
        self._dtype = getattr(torch, model.dtype)
        self.module = place(ResNetForImageClassification(config), self._dtype, device())
        self._norms = _take_norms_of_real_rows(self.module, model.sync_batch_norm)
        self.classes = model.num_labels
        arrays = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        self.parameters: Parameters = {weight.name: arrays[weight.name] for weight in resnet.weights(model)}

    def gradient_checkpointing_enable(self) -> None:
        """Compute blocks again in the backward pass, and keep nothing but their inputs."""
        for stage in self.module.resnet.encoder.stages:
            stage.layers = torch.nn.Sequential(*map(_Recomputed, stage.layers))

    def features(self, inputs: Mapping[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The mean of the last maps, (rows, targets, hidden_sizes[-1])."""
        self.module.train(training)
        rows = (inputs["loss_weights"].sum(1) > 0.0).to(self._dtype)
        for norm in self._norms:
            norm.rows = rows
        pooled = self.module.resnet(pixels_of(inputs, self._dtype).contiguous()).pooler_output
        return for_each_target(pooled.flatten(1), inputs)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The classification head, (rows, targets, num_labels)."""
        return self.module.classifier[-1](features)


class _Recomputed(torch.nn.Module):
    """A block that keeps its input alone in training; its norms count a micro-batch once."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self._block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self._block(x)
        return checkpoint(
            self._block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), recomputing())
        )


class _Norm(torch.nn.Module):
    """In place of a `BatchNorm2d`, whose weights and buffers it has."""

    def __init__(self, norm: torch.nn.BatchNorm2d, name: str | None) -> None:
        super().__init__()
        self.weight, self.bias, self._name = norm.weight, norm.bias, name
        for buffer in ("running_mean", "running_var"):
            self.register_buffer(buffer, getattr(norm, buffer))
        # Which are real, of the micro-batch that is to come.
        self.rows = torch.ones(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        if not self.training:
            return functional.batch_norm(x, *statistics, self.weight, self.bias, eps=EPSILON)
        output, moments = batch_norm(x, self.weight, self.bias, self.rows, self._name)
        keep(*statistics, moments)
        return output


def _take_norms_of_real_rows(module: torch.nn.Module, sync: bool) -> list[_Norm]:
    """Replace every `BatchNorm2d`; returns what stands in their places."""
    found = []
    for name, norm in [*module.named_modules()]:
        if isinstance(norm, torch.nn.BatchNorm2d):
            found.append(_Norm(norm, name if sync else None))
            module.set_submodule(name, found[-1])
    return found
