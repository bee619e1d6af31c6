"""`transformers serve` on what runs leave, asked by OpenAI's own client: the answers of `finllm generate`."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from finllm.errors import visible

LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_r", 4)
QUESTIONS = ["What is a bond?", "Why is {{ tax }} paid?\nIn one line, please: 12 %, 😀"]


@pytest.fixture
def server(tmp_path):
    """The address of a `transformers serve` that loads what it is asked for; it ends with the test."""
    for name in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(name, reason="the server's packages are not there: pip install 'finllm[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "transformers"
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"], stdout=log, stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(1200):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            try:
                opener.open(f"{address}/health", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.25)
        else:
            raise AssertionError((tmp_path / "server.log").read_text())
        yield address
    finally:
        process.terminate()
        process.wait(60)


def test_a_server_answers_as_generate_does(server, train, command, tmp_path):
    from openai import OpenAI

    adapter, full = (train(kind, *flags, name=kind) for kind, flags in (("llama", LORA), ("gpt2", ())))
    assert adapter[0].status == full[0].status == 0, adapter[0].err + full[0].err
    done = command("finllm/cli.py", "merge", adapter[1].path, "--output_dir", tmp_path / "merged")
    assert done.status == 0, done.err
    client = OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=300)
    for run, folder in ((adapter[1].path, tmp_path / "merged"), (full[1].path, full[1].model)):
        for question in QUESTIONS:
            expected = [
                command("finllm/cli.py", "generate", name, question, "--max_new_tokens", 12) for name in (run, folder)
            ]
            assert expected[0].status == 0 and expected[0].out == expected[1].out, expected[0].err
            given = {"model": str(folder), "messages": [{"role": "user", "content": question}], "temperature": 0,
                     "max_tokens": 12}  # fmt: skip
            (choice,) = client.chat.completions.create(**given).choices
            assert visible(choice.message.content) + "\n" == expected[0].out
            chunks = [
                chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**given, stream=True)
            ]
            assert visible("".join(chunks)) + "\n" == expected[0].out and len(chunks) > 2
