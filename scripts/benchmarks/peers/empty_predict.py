"""A Cog predictor that does nothing: the cost of the server itself."""

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    async def predict(self, text: str = Input(description="Ignored")) -> float:
        return 0.0
