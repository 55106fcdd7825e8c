"""How many inputs run as one batch, by device type. Imports no torch.

On a CPU, larger batches are hardly faster. On a GPU, `cuda_graphs` splits a batch into graphs of
LARGEST_TEXT_GRAPH texts or LARGEST_IMAGE_GRAPH images: with more, an H100 embeds 6% (long) to 24%
(short) more texts per second, and 2% more images (docs/gpu.md). The larger graphs for catalogs fill
the GPU better with cuDNN's attention; the batch of a catalog is four of them, so that inputs are
copied while the GPU computes.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_TEXT_GRAPH = 64
LARGEST_IMAGE_GRAPH = 16
LARGEST_CATALOG_IMAGE_GRAPH = 64


@dataclass(frozen=True)
class ServiceLimits:
    """The largest batch of each kind. tokens: of all its texts, end-of-text included."""

    tokens: int
    images: int


@dataclass(frozen=True)
class CatalogLimits:
    """The largest batch of each kind, in rows."""

    texts: int
    images: int


SERVICE_LIMITS = {
    "cpu": ServiceLimits(tokens=1024, images=2),
    "cuda": ServiceLimits(tokens=LARGEST_TEXT_GRAPH * 77, images=LARGEST_IMAGE_GRAPH),
}
"""Small, since a batch delays the requests after it: one or two seconds on a CPU of two cores, and
7 ms on an H100."""

CATALOG_LIMITS = {
    "cpu": CatalogLimits(texts=64, images=8),
    "cuda": CatalogLimits(texts=1024, images=4 * LARGEST_CATALOG_IMAGE_GRAPH),
}
"""Larger, because no request waits for a row."""
