"""predict.py for a test: a GPU that has memory for two inputs, and fails at a truncated text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import predict
from clip_embed import embedder as embedder_module

ERROR = "CUDA error: an illegal memory access was encountered"
INPUTS_IN_MEMORY = 2


class Predictor(predict.Predictor):
    """Raises torch's errors where the network would."""

    def setup(self) -> None:
        super().setup()
        embedder = self._service._embedder
        lost: list[str] = []

        def fail_sometimes(encode: Any) -> Any:
            def encode_or_fail(inputs: Sequence[Any]) -> Any:
                if any(getattr(each, "truncated", False) for each in inputs):
                    lost.append(ERROR)
                if lost:
                    raise torch.AcceleratorError(f"{ERROR}\nFor debugging, read more")
                if len(inputs) > INPUTS_IN_MEMORY:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
                return encode(inputs)

            return encode_or_fail

        embedder._encode_texts = fail_sometimes(embedder._encode_texts)
        embedder._encode_images = fail_sometimes(embedder._encode_images)
        embedder_module._error_of_lost_device = lambda device: lost[0] if lost else None
