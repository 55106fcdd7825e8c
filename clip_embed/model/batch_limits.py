"""How many inputs run as one batch, by device type. Imports no torch.

On a CPU, larger batches are hardly faster. On a GPU, `cuda_graphs` splits a batch into graphs of up
to 64 texts or 16 images, which keep an H100 busy (docs/gpu.md).
"""

from __future__ import annotations

from dataclasses import dataclass


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


SERVICE_LIMITS = {"cpu": ServiceLimits(1024, 2), "cuda": ServiceLimits(64 * 77, 16)}
"""Small, since a batch delays the requests after it: one or two seconds on a CPU of two cores, and
6 ms on an H100, which gains less than a tenth by larger ones."""

CATALOG_LIMITS = {"cpu": CatalogLimits(64, 8), "cuda": CatalogLimits(1024, 64)}
"""Larger, because no request waits for a row."""
