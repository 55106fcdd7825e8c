"""Everything this package says no to, in one tree. Knows nothing of torch, Cog or the network.

ClipEmbedError
├── InputError            a request is at fault: the service stays ready and says what to send
│   ├── NoInputError      neither text nor image
│   ├── TextError         text that cannot be tokenized
│   └── ImageError        a file that is not a picture we accept
├── WeightsError          set-up cannot go on; the message names the object and the way out
│   ├── LocationError     CLIP_WEIGHTS is unset, malformed, or there is no model at it
│   ├── AccessError       the location refuses us
│   ├── ManifestError     what is published there is not a model we can read
│   ├── TransferError     bytes did not arrive, after retries
│   └── CorruptError      bytes arrived and are not those that were published
├── ModelError            the published model is not one this network can carry: set-up fails
└── EmbeddingError        the network gave an answer that is not a vector of finite numbers
"""


class ClipEmbedError(Exception):
    """The root: whatever this package raises on purpose is one of these."""


class InputError(ClipEmbedError, ValueError):
    """The request is at fault; its message names the value and the way out."""


class NoInputError(InputError):
    """Neither text nor an image was sent."""


class TextError(InputError):
    """The text cannot be embedded."""


class ImageError(InputError):
    """The image cannot be embedded."""


class WeightsError(ClipEmbedError):
    """Set-up cannot go on; the message names the object, the cause and the way out."""


class LocationError(WeightsError):
    """CLIP_WEIGHTS is unset, malformed, or there is no model at it."""


class AccessError(WeightsError):
    """The location refuses us."""


class ManifestError(WeightsError):
    """What is published there is not a model we can read."""


class TransferError(WeightsError):
    """Bytes did not arrive, after retries."""


class CorruptError(WeightsError):
    """Bytes arrived and are not those that were published."""


class ModelError(ClipEmbedError):
    """Configuration or tensors do not fit the network."""


class EmbeddingError(ClipEmbedError):
    """The network returned something that is not a finite vector."""
