"""A Cog predictor in the style of open_clip's users: download the checkpoint, create the model."""

import os
import tempfile

import open_clip
import torch
from cog import BasePredictor, Input
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager


class Predictor(BasePredictor):
    def setup(self) -> None:
        client = storage.Client(project="emulator", credentials=AnonymousCredentials())
        blob = client.bucket("models").blob("open_clip/open_clip_model.safetensors")
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "open_clip_model.safetensors")
            transfer_manager.download_chunks_concurrently(blob, path)
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(
                "ViT-L-14-quickgelu", pretrained=path
            )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer("ViT-L-14-quickgelu")

    @torch.inference_mode()
    def predict(self, text: str = Input(description="Text to embed")) -> list[float]:
        return self.model.encode_text(self.tokenizer([text]))[0].tolist()
