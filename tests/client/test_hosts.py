"""Clients in programs that fork, or restart, by themselves: gunicorn, a Jupyter kernel, PyTorch's DataLoader.

Each is skipped where its package is not installed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from programs import run

SECONDS = 5.0
"""No answer may take longer."""

APP = """
import contextlib
import os
from edge_attention import Client, FailedPrecondition

ADDRESS = os.environ["AGGREGATOR"]
client = Client(ADDRESS)
if os.environ["CALLED"] == "called":
    client.nodes()
if os.environ["OPEN"] == "closed":
    client.close()

def app(environ, start_response):
    given = client
    try:
        if environ["PATH_INFO"] == "/new":
            given = Client(ADDRESS)
        said = f"returned {len(given.nodes())}"
    except FailedPrecondition as error:
        said = str(error)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [said.encode()]
"""


@pytest.fixture
def gunicorn(tmp_path, address):
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []

    def start(called, open):
        environment = os.environ | {"AGGREGATOR": address, "CALLED": called, "OPEN": open}
        command = ["-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "app:app"]
        started.append(
            subprocess.Popen(
                [sys.executable, *command, "--no-control-socket"],
                cwd=tmp_path,
                env=environment,
                start_new_session=True,
            )
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

        def get(path):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
                return answer.read().decode()

        return get

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_gunicorn_preloaded_with_a_client_open(gunicorn):
    get = gunicorn("called", "open")
    assert "does not outlive the fork" in get("/old")
    assert "no client can be made" in get("/new")


@pytest.mark.parametrize(("called", "open"), [("not", "open"), ("called", "closed")])
def test_gunicorn_preloaded_with_no_channel_open(gunicorn, called, open):
    get = gunicorn(called, open)
    assert "does not outlive the fork" in get("/old")
    assert get("/new") == "returned 1"


def test_a_jupyter_kernel_is_interrupted_and_restarted_in_the_middle_of_a_call(fake, address):
    pytest.importorskip("ipykernel")
    fake.endless = True
    manager = pytest.importorskip("jupyter_client").manager.KernelManager(kernel_name="python3")
    manager.start_kernel()
    kernel = manager.client()
    kernel.start_channels()
    made = f"from edge_attention import Client\nclient = Client({address!r})\nprint(len(client.nodes()))"
    following = "for event in client.run('r1').events(): print('going on', flush=True)"

    def cell(code, interrupt_at=None):
        # What a cell prints, or raises; interrupted once it has printed so much.
        asked, said, began = kernel.execute(code), "", time.monotonic()
        while True:
            message = kernel.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            said += content.get("text", "") + content.get("ename", "")
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                assert interrupt_at is None or time.monotonic() - began < SECONDS
                return said
            if interrupt_at is not None and interrupt_at in said:
                interrupt_at, began = None, time.monotonic()
                manager.interrupt_kernel()

    try:
        kernel.wait_for_ready(timeout=60)
        for _ in range(2):
            assert cell(made) == "1\n"
            assert cell(made) == "1\n"  # run again: the old client is dropped
            assert "KeyboardInterrupt" in cell(following, "going on")
            assert cell("print(len(client.nodes()))") == "1\n"
            kernel.execute(following)
            began = time.monotonic()
            manager.restart_kernel(now=False)
            kernel.wait_for_ready(timeout=60)
            assert time.monotonic() - began < 2 * SECONDS
        assert cell(made) == "1\n"
    finally:
        kernel.stop_channels()
        began = time.monotonic()
        manager.shutdown_kernel(now=False)
        assert time.monotonic() - began < 2 * SECONDS


def test_a_data_loader_s_workers_are_told(address):
    pytest.importorskip("torch")
    ended = run(
        """
import sys
from torch.utils.data import DataLoader, Dataset
from edge_attention import Client

class Rows(Dataset):
    def __init__(self, client):
        self.client = client
    def __len__(self):
        return 4
    def __getitem__(self, row):
        return len((self.client or Client(sys.argv[1])).nodes())

def said(given, **how):
    try:
        return [int(x) for batch in DataLoader(Rows(given), num_workers=2, timeout=20, **how) for x in batch]
    except Exception as error:
        return str(error)

client = Client(sys.argv[1])
client.nodes()
print(repr(said(client)))
print(repr(said(client, multiprocessing_context="spawn")))
print(repr(said(None)))
client.close()
print(said(None))
""",
        address,
    )
    assert ended.code == 0, ended.err
    old, sent, new, closed = ended.lines
    assert "does not outlive the fork" in old
    assert "cannot be copied" in sent
    assert "no client can be made" in new
    assert closed == "[1, 1, 1, 1]"
