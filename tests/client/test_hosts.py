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

SECONDS = 120.0
"""No answer may take longer, however busy the machine: what hangs is found, what is slow is not."""

HOOKS = """
import pathlib

def post_worker_init(worker):
    pathlib.Path(f"up-{worker.age}").touch()
"""

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
    (tmp_path / "hooks.py").write_text(HOOKS)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    started = []

    def start(called, open):
        environment = os.environ | {"AGGREGATOR": address, "CALLED": called, "OPEN": open}
        command = ["-m", "gunicorn", "--preload", "--workers", "2", "--config", "hooks.py"]
        # One that does not end by itself is given longer than the test waits.
        command += ["--graceful-timeout", str(int(2 * SECONDS)), "--bind", f"fd://{listening.fileno()}"]
        process = subprocess.Popen(
            [sys.executable, *command, "--no-control-socket", "app:app"],
            cwd=tmp_path,
            env=environment,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
        started.append(process)
        # For a moment after the fork a worker has its arbiter's handlers, and a SIGTERM is lost on it:
        # gunicorn then waits all its graceful time. So both are up before anything is asked or ended.
        deadline = time.monotonic() + SECONDS
        while len(list(tmp_path.glob("up-*"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

        def get(path):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
                return answer.read().decode()

        return get

    yield start
    listening.close()
    for process in started:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(SECONDS) == 0
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
    # Half of it, before a kernel that does not end by itself is sent a signal.
    manager.shutdown_wait_time = 4 * SECONDS
    manager.start_kernel()
    kernel = manager.client()
    kernel.start_channels()
    made = f"from edge_attention import Client\nclient = Client({address!r})\nprint(len(client.nodes()))"
    following = "for event in client.run('r1').events(): print('going on', flush=True)"

    def said(asked, until=None):
        # What a cell prints, or raises: to its end, or until it has printed so much.
        text, late = "", time.monotonic() + SECONDS
        while until is None or until not in text:
            assert time.monotonic() < late, f"it goes on: {text[-200:]}"
            message = kernel.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            text += content.get("text", "") + content.get("ename", "")
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                break
        return text

    def cell(code):
        return said(kernel.execute(code))

    def begun():
        # An interrupt that comes before the cell has begun interrupts nothing.
        asked = kernel.execute(following)
        assert "going on" in said(asked, "going on")
        return asked

    try:
        kernel.wait_for_ready(timeout=SECONDS)
        for _ in range(2):
            assert cell(made) == "1\n"
            assert cell(made) == "1\n"  # run again: the old client is dropped
            asked = begun()
            manager.interrupt_kernel()
            assert "KeyboardInterrupt" in said(asked)
            assert cell("print(len(client.nodes()))") == "1\n"
            begun()
            began = time.monotonic()
            manager.restart_kernel(now=False)
            kernel.wait_for_ready(timeout=SECONDS)
            assert time.monotonic() - began < SECONDS, "it was ended by a signal"
        assert cell(made) == "1\n"
    finally:
        kernel.stop_channels()
        began = time.monotonic()
        manager.shutdown_kernel(now=False)
        assert time.monotonic() - began < SECONDS, "it was ended by a signal"


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
        return [int(x) for batch in DataLoader(Rows(given), num_workers=2, timeout=120, **how) for x in batch]
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
