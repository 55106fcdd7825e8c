"""Run nginx with a limited rate per connection, as a bucket limits its streams."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.lib.cog_server import free_port


@contextlib.contextmanager
def nginx(directory: Path, rate: int) -> Iterator[str]:
    """Serve directory/web at `rate` bytes/s per connection; yield the URL."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        daemon off; worker_processes auto; pid {directory}/nginx.pid; error_log stderr crit;
        user {os.environ.get("USER", "root")};
        events {{ worker_connections 256; }}
        http {{
            access_log off; sendfile on; keepalive_requests 10000;
            # nginx waits after every chunk but the last: small chunks make the limit exact.
            sendfile_max_chunk 256k;
            client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2;
            fastcgi_temp_path {directory}/t3; uwsgi_temp_path {directory}/t4;
            scgi_temp_path {directory}/t5;
            server {{ listen 127.0.0.1:{port}; root {directory}/web; limit_rate {rate}; }}
        }}
        """
    )
    process = subprocess.Popen(["nginx", "-p", str(directory), "-c", str(config)])
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
