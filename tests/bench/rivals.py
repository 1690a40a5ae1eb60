"""Other proxies, started as their makers document it, in front of the same model server.

None of them redacts or knows who may ask for what: each does less than ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.load import Way, family
from tests.unit.egress.harness import PLACEHOLDER, ROOT

_NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream model {{ server 127.0.0.1:{upstream}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""
# Without it, mitmproxy holds a stream back until its end.
_STREAM = """
def responseheaders(flow):
    flow.response.stream = "event-stream" in flow.response.headers.get("content-type", "")
"""
_LITELLM = """
model_list:
  - model_name: llm-v1
    litellm_params:
      model: openai/llm-v1
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: none
general_settings:
  master_key: {token}
"""
_START = "from litellm.proxy.proxy_cli import run_server; run_server()"


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@contextlib.contextmanager
def _running(name: str, command: list[str], port: int, folder: Path) -> Iterator[Way]:
    """A process that listens on `port` within two minutes."""
    if not shutil.which(command[0]):
        raise FileNotFoundError(f"{command[0]} is missing; run: packaging/setup.sh run test bench")
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start: {log.read_text()[-800:]}")
            time.sleep(0.1)
        yield Way(name, ("127.0.0.1", port), family(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nginx(upstream: int, folder: Path) -> Iterator[Way]:
    """A plain reverse proxy with one worker: the least that any proxy costs."""
    port, config = _free_port(), folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, upstream=upstream))
    command = ["/usr/sbin/nginx", "-c", str(config), "-e", str(folder / "error.log")]
    with _running("nginx", command, port, folder) as way:
        yield way


@contextlib.contextmanager
def mitmproxy(upstream: int, folder: Path) -> Iterator[Way]:
    """As a reverse proxy without an addon but one that lets streams pass."""
    port, addon = _free_port(), folder / "stream.py"
    addon.write_text(_STREAM)
    command = ["/usr/bin/mitmdump", "--quiet", "--mode", f"reverse:http://127.0.0.1:{upstream}"]
    command += ["--listen-host", "127.0.0.1", "--listen-port", str(port), "--scripts", str(addon)]
    with _running("mitmproxy", command, port, folder) as way:
        yield way


@contextlib.contextmanager
def litellm(upstream: int, folder: Path) -> Iterator[Way]:
    """LiteLLM's proxy with one worker, one model, no database."""
    port, config = _free_port(), folder / "litellm.yaml"
    config.write_text(_LITELLM.format(upstream=upstream, token=PLACEHOLDER))
    command = [str(ROOT / ".bench/bin/python3"), "-I", "-c", _START, "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with _running("LiteLLM", command, port, folder) as way:
        yield way
