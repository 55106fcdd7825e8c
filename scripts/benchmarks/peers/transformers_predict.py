"""A Cog predictor in the style of transformers' users: download, then from_pretrained."""

import os
import tempfile

import torch
from cog import BasePredictor, Input, Path
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager
from PIL import Image
from transformers import CLIPModel, CLIPProcessor


class Predictor(BasePredictor):
    def setup(self) -> None:
        client = storage.Client(project="emulator", credentials=AnonymousCredentials())
        bucket = client.bucket("models")
        with tempfile.TemporaryDirectory() as directory:
            for blob in list(client.list_blobs("models", prefix="transformers/")):
                path = os.path.join(directory, os.path.basename(blob.name))
                transfer_manager.download_chunks_concurrently(bucket.blob(blob.name), path)
            self.model = CLIPModel.from_pretrained(directory)
            self.processor = CLIPProcessor.from_pretrained(directory)
        self.model.eval()

    def predict(
        self,
        text: str | None = Input(description="Text to embed", default=None),
        image: Path | None = Input(description="Image to embed", default=None),
    ) -> list[float]:
        # Not a decorator: Cog would not find the defaults behind it.
        with torch.inference_mode():
            if image is not None:
                inputs = self.processor(images=Image.open(image), return_tensors="pt")
                features = self.model.get_image_features(**inputs)
            else:
                inputs = self.processor(text=text, return_tensors="pt", padding=True)
                features = self.model.get_text_features(**inputs)
        return getattr(features, "pooler_output", features)[0].tolist()
