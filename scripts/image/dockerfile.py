"""The Dockerfile that Cog writes for cog.yaml if it builds on python:3.11-slim.

Read from the generator of Cog after 0.22 (pkg/dockerfile/standard_generator.go). Three downloads
are replaced, so that neither a registry of images nor GitHub is needed: the base image by one
that is made from Debian's packages, uv's image by uv's wheel, and the binary of tini by Debian's.
"""

from __future__ import annotations

import re
from typing import Any

UV_VERSION = "0.9.26"
"""That of Cog's generator."""

PINNED = re.compile(r"([A-Za-z0-9_-]+)==([^ ]+)")
"""What Cog reads of a requirement: no markers, hashes or dots in names."""

MANAGED = ("cog", "coglet")
"""Packages that Cog removes from requirements, and installs itself."""

OPTIMIZE = 'ENV CFLAGS="-O3 -funroll-loops -fno-strict-aliasing -flto -S"'


def image_requirements(text: str) -> list[str]:
    """Return the requirements that Cog passes to pip, from the text of requirements.txt."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pins = [PINNED.match(line) for line in lines if line]
    return [pin[0] for pin in pins if pin is not None and pin[1].lower() not in MANAGED]


def dockerfile(config: dict[str, Any], concurrency: int, base: str) -> str:
    """Return the Dockerfile for cog.yaml, whose content is `config`.

    concurrency: Cog reads it from the decorator of predict. base: the image to build on. The build
    context `cog_build` holds requirements.txt and openapi_schema.json, and `uv` holds uv and uvx.
    """
    build = config["build"]
    return "\n".join(
        [
            f"FROM {base}",
            "ENV DEBIAN_FRONTEND=noninteractive",
            "ENV PYTHONUNBUFFERED=1",
            "ENV LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/usr/lib/x86_64-linux-gnu"
            ":/usr/local/nvidia/lib64:/usr/local/nvidia/bin",
            "ENV NVIDIA_DRIVER_CAPABILITIES=all",
            'ENTRYPOINT ["/sbin/tini", "--"]',
            f"ENV {' '.join(sorted(config['environment']))}",
            "COPY --from=uv uv uvx /usr/local/bin/",
            "ENV UV_SYSTEM_PYTHON=true",
            "COPY --from=cog_build requirements.txt /tmp/requirements.txt",
            OPTIMIZE,
            "RUN uv run pip install --cache-dir /root/.cache/pip -r /tmp/requirements.txt",
            "ENV CFLAGS=",
            OPTIMIZE,
            f"RUN uv pip install --no-cache cog=={build['sdk_version']}",
            "ENV CFLAGS=",
            # Cog makes the linker find the directories of these libraries.
            "RUN find / -type f -name '*python*.so' -printf '%h\\n' | sort -u"
            " > /etc/ld.so.conf.d/cog.conf && ldconfig",
            *(f"RUN {command}" for command in build["run"]),
            "WORKDIR /src",
            "EXPOSE 5000",
            f'ENV COG_PREDICT_TYPE_STUB="{config["predict"]}"',
            f"ENV COG_MAX_CONCURRENCY={concurrency}",
            'CMD ["python", "-m", "cog.server.http"]',
            "COPY . /src",
            "COPY --from=cog_build openapi_schema.json .cog/",
            "",
        ]
    )
