"""BERT as Hugging Face Transformers builds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from hvdtrain.core.families import bert
from hvdtrain.core.families.bert import ModelSpec
from hvdtrain.torch.families._transformers import recompute_layers
from hvdtrain.torch.placeholders import place
from hvdtrain.torch.world import device


class Network:
    """`BertForMaskedLM`, its head at the masked positions alone, or `BertForSequenceClassification`."""

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        del compute_dtype  # autocast casts what enters matrix products
        self._classifies = model.num_labels is not None
        kind = BertForSequenceClassification if self._classifies else BertForMaskedLM
        config = BertConfig(**bert.hf_config(model))
        self.module = place(kind(config), getattr(torch, model.dtype), device())
        # Hugging Face freezes row 0 of the word embeddings through padding_idx; the definition here does not.
        self.module.bert.embeddings.word_embeddings.padding_idx = None
        self.classes = model.num_labels or model.vocab_size
        self.parameters = dict(self.module.named_parameters())

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        recompute_layers(self.module)

    def features(self, inputs: Mapping[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The last hidden state at the masked positions, (rows, predictions, hidden_size).

        With a classifier, the pooler's output, (rows, 1, hidden_size).
        """
        self.module.train(training)
        found = self.module.bert(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            token_type_ids=inputs["token_type_ids"],
        )
        if self._classifies:
            return self.module.dropout(found.pooler_output)[:, None]
        hidden = found.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return hidden[rows, inputs["masked_positions"]]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The masked-LM head, or the classifier."""
        return self.module.classifier(features) if self._classifies else self.module.cls(features)
