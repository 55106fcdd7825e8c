"""A Cog predictor that does nothing: what the server itself costs."""

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, text: str = Input(description="Ignored")) -> float:
        return 0.0
