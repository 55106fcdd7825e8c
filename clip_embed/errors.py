"""The exceptions of this package, in one tree. Imports nothing.

ClipEmbedError
├── InputError            the request is at fault; the service stays ready
│   ├── NoInputError      neither text nor image
│   ├── TextError         the text cannot be tokenized
│   └── ImageError        the file is not an image that is accepted
│       └── DownloadError the image cannot be downloaded from its URL
├── SettingError          a setting is invalid, or impossible on this machine: setup fails
├── WeightsError          the weights cannot be loaded: setup fails, the message names the object
│   ├── LocationError     CLIP_WEIGHTS is unset or malformed, or holds no model
│   ├── AccessError       access is denied
│   ├── ManifestError     the published files are malformed
│   ├── TransferError     the bytes did not arrive, after retries
│   └── CorruptError      the bytes that arrived fail verification
├── ModelError            the published model is not one that this network implements: setup fails
└── EmbeddingError        the network gave no valid vector
    └── DeviceError       the GPU has no memory left, not even for one input
        └── DeviceLostError  the GPU has failed; only a restart of the process may help

TransientError stands outside: it is retried, and never reaches a user.
"""


class ClipEmbedError(Exception):
    """Base class of every exception that this package raises on purpose."""


class InputError(ClipEmbedError, ValueError):
    """The request is at fault; the message names the value and the way out."""


class NoInputError(InputError):
    """Neither text nor an image was sent."""


class TextError(InputError):
    """The text cannot be embedded."""


class ImageError(InputError):
    """The image cannot be embedded."""


class DownloadError(ImageError):
    """The image cannot be downloaded. reason: one word, for metrics."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SettingError(ClipEmbedError, ValueError):
    """An environment variable has a value that is invalid, or impossible on this machine."""


class WeightsError(ClipEmbedError):
    """The weights cannot be loaded; the message names the object, the cause and the way out."""


class LocationError(WeightsError):
    """CLIP_WEIGHTS is unset or malformed, or there is no model at it."""


class AccessError(WeightsError):
    """Access to the location is denied."""


class ManifestError(WeightsError):
    """The published files are malformed."""


class TransferError(WeightsError):
    """The bytes did not arrive, after retries."""


class TransientError(Exception):
    """A failed request for published bytes that may succeed when repeated (checkpoint/fetch.py).

    busy: the server is overloaded (HTTP 429, 503). attempts: their number, set after the last one.
    """

    def __init__(self, problem: str, busy: bool = False) -> None:
        super().__init__(problem)
        self.busy = busy
        self.attempts = 1


class CorruptError(WeightsError):
    """The bytes that arrived are not the ones that were published."""


class ModelError(ClipEmbedError):
    """The configuration or the tensors do not fit the network."""


class EmbeddingError(ClipEmbedError):
    """The network gave no valid vector: a value is not finite, or the GPU failed."""


class DeviceError(EmbeddingError):
    """The GPU has no memory left for one input; the input is not at fault."""


class DeviceLostError(DeviceError):
    """The GPU has failed, and this process cannot use it again."""
