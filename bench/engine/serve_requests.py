"""Sends requests of mixed lengths to vLLM's OpenAI server with Tessera: failures, and GPU memory.

Starts `vllm serve` on a model with random weights. Prompts are token ids, as there is no tokenizer.
The file of results is written anew after every hundred requests.

Needs vLLM and Tessera, installed as packages (PYTHONPATH will do), and a GPU; no network but this
machine's own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine_models import (
    ENGINE_OPTIONS,
    EXECUTIONS,
    MODELS,
    VARIANTS,
    argument_parser,
    environment_of,
    write_config,
)
from engine_process import stop

from tessera.tools.bench.results import write_results

NAME = "model"
STEP = 100  # requests between samples of the memory
SHOWN_FAILURES = 20
MAX_PROMPT, MAX_GENERATED = 3000, 256
METHODS = {
    "requests": "POST /v1/completions to vllm serve, prompts of random token ids; lengths are "
    f"log-uniform, prompts up to {MAX_PROMPT} tokens and answers up to {MAX_GENERATED}; a request "
    "fails unless its answer has status 200 and as many tokens as asked for",
    "memory": "nvidia-smi, used memory of the whole GPU",
}
ABOUT = """
import json, sys
from tessera.tools.bench.machine import description
about = description("cuda", sys.argv[1] or None)
del about["environment"]
print(json.dumps(about))
"""


def request_sizes(number: int) -> list[tuple[int, int]]:
    """The tokens of each prompt and of its answer, the same in every run."""
    numbers = random.Random(2)

    def size(most: int) -> int:
        return min(most, int((most + 1) ** numbers.random()))

    return [(size(MAX_PROMPT), size(MAX_GENERATED)) for _ in range(number)]


def server_command(folder: Path, port: int, execution: str) -> list[str]:
    """The command line of `vllm serve`, whose program need not be installed."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    options = ENGINE_OPTIONS | EXECUTIONS[execution]
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is False:
            command.append(option.replace("--", "--no-", 1))
        elif value is True:
            command.append(option)
        else:
            command += [option, json.dumps(value) if isinstance(value, dict) else str(value)]
    return command


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def ask(port: int, prompt: list[int], generated: int) -> str | None:
    """Send one request; None if it was answered in full, else what happened."""
    body = {
        "model": NAME,
        "prompt": prompt,
        "max_tokens": generated,
        "temperature": 0,
        "ignore_eos": True,
    }
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.status != 200:
            return f"status {response.status}: {content.decode(errors='replace')[:300]}"
        got = json.loads(content)["usage"]["completion_tokens"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None if got == generated else f"expected {generated} tokens, got {got}"


def is_ready(port: int) -> bool:
    """Whether the server answers."""
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def used_mb() -> int:
    """Used memory of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def end(process: subprocess.Popen[str]) -> None:
    """End the server: gently, then not."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    stop(process)


class Run:
    """The document, its file and the server."""

    def __init__(self, options: argparse.Namespace, port: int) -> None:
        self._options = options
        self._port = port
        self._begin = time.perf_counter()
        model = MODELS[options.model]
        layers = options.layers or model.layers
        self.document: dict[str, Any] = {
            "kind": "serve",
            "model": options.model,
            "sizes": model.sizes(layers),
            "execution": options.execution,
            "variant": options.variant,
            "methods": METHODS,
            "concurrency": options.concurrency,
            "requests": options.requests,
            "answered": 0,
            "failed": 0,
            "failures": [],
            "memory": [],
        }

    def say(self, text: str) -> None:
        """Print progress."""
        print(f"[{time.perf_counter() - self._begin:6.1f} s] {text}", flush=True)

    def write(self) -> None:
        """Write what there is."""
        write_results(self._options.json, self.document)

    def wait_until_ready(self, process: subprocess.Popen[str]) -> None:
        """Wait for the server, or end the program where it ends or the time is over."""
        begin = time.perf_counter()
        while not is_ready(self._port):
            if process.poll() is not None:
                sys.exit(f"vllm serve: ended with exit code {process.returncode} before it served")
            if time.perf_counter() - begin > self._options.limit:
                sys.exit(f"vllm serve: expected to serve within {self._options.limit:g} s")
            time.sleep(0.5)
        self.document["start_s"] = round(time.perf_counter() - begin, 1)
        self.say(f"vllm serve answers after {self.document['start_s']} s")

    def send(self) -> None:
        """Send all requests, so many at a time."""
        numbers = random.Random(1)
        vocab_size = self.document["sizes"]["vocab_size"]
        sizes = request_sizes(self._options.requests)
        self.document["prompt_tokens"] = sum(prompt for prompt, _ in sizes)
        self.document["generated_tokens"] = sum(generated for _, generated in sizes)
        self._sample()
        begin = time.perf_counter()
        with ThreadPoolExecutor(self._options.concurrency) as pool:
            waiting = [
                pool.submit(
                    ask,
                    self._port,
                    [numbers.randrange(1000, vocab_size - 1000) for _ in range(prompt)],
                    generated,
                )
                for prompt, generated in sizes
            ]
            for number, done in enumerate(as_completed(waiting), 1):
                if failure := done.result():
                    self.document["failed"] += 1
                    if self.document["failed"] <= SHOWN_FAILURES:
                        self.document["failures"].append(failure)
                        self.say(f"failed: {failure}")
                self.document["answered"] = number
                if number % STEP == 0:
                    self._sample()
        self.document["seconds"] = round(time.perf_counter() - begin, 2)
        self._sample()

    def _sample(self) -> None:
        row = {"answered": self.document["answered"], "mb": used_mb()}
        self.document["memory"].append(row)
        self.say(f"{row['answered']} requests, {self.document['failed']} failed, {row['mb']} MB")
        self.write()


def main() -> None:
    """Start the server, send, print and write."""
    parser = argument_parser(__doc__, execution="default")
    parser.add_argument("--variant", choices=VARIANTS, default="tessera")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64, help="requests at a time")
    parser.add_argument(
        "--limit", type=float, default=300, metavar="SECONDS", help="of the server's start"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keeps the server's log")
    options = parser.parse_args()
    port = free_port()
    run = Run(options, port)
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), options.model, run.document["sizes"]["layers"])
        log = options.log or Path(folder) / "server.log"
        with log.open("w") as file:
            command = server_command(Path(folder), port, options.execution)
            run.say(" ".join(command))
            process = subprocess.Popen(
                command,
                env=environment_of(options.variant, dict(os.environ)),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                run.wait_until_ready(process)
                run.send()
                about = [sys.executable, "-c", ABOUT, options.commit or ""]
                run.document |= json.loads(subprocess.check_output(about, text=True))
                run.document["is_alive"] = process.poll() is None
            finally:
                end(process)
                text = log.read_text(errors="replace")
                run.document["log"] = [line for line in text.splitlines() if "Tessera" in line][:10]
                run.write()
                if not run.document.get("is_alive"):
                    print(text[-8000:], file=sys.stderr)
    run.document["vllm"] = version("vllm")
    run.write()
    for line in run.document["log"]:
        run.say(f"the server's log: {line}")
    run.say(f"{options.requests} requests, {run.document['failed']} failed; wrote {options.json}")
    if options.variant == "tessera" and not run.document["log"]:
        sys.exit("vllm serve: expected a line of Tessera in the log, got none")
    if run.document["failed"] or not run.document["is_alive"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
