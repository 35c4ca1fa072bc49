"""`make test-systemd`: docs/pi.md as written, on a Debian that systemd booted: token, attend, kill, stop.

python3 -m tests.systemd
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.compose.console import Failed, complain, say, wait_for
from tests.compose.fleet import ROOT, last_object, need
from tests.systemd.box import Box, cache_folder, lacking

PAGE = (ROOT / "docs" / "pi.md").read_text()
NAME = "aggregator.example"
ATTEND = """
import sys, numpy as np
from edge_attention import Client
random = np.random.default_rng(0)
keys, values = (random.standard_normal((3000, 2, n)).astype(np.float32) for n in (16, 8))
asked = random.standard_normal((8, 2, 16)).astype(np.float32)
with Client(sys.argv[1], token=sys.argv[2]) as client:
    context = client.create_context(sys.argv[3], query_heads=2, key_heads=2, key_dim=16, value_dim=8)
    context.append(keys, values)
    answer = context.attend(asked, deadline=60)
s = np.einsum("qhd,thd->qht", asked.astype(float), keys) / 4
weights = np.exp(s - s.max(axis=2, keepdims=True))
out = np.einsum("qht,thd->qhd", weights / weights.sum(axis=2, keepdims=True), values)
print("exact" if answer.exact and np.abs(answer.out - out).max() < 1e-5 else "WRONG")
"""


def block(name: str) -> list[str]:
    """The commands of a block of the page."""
    found = re.search(rf"<!-- test: {name} -->\n```console\n(.*?)```", PAGE, re.DOTALL)
    if not found:
        raise Failed(f"docs/pi.md has no block {name!r}")
    return found[1].splitlines()


def follow(box: Box, commands: list[str], token: str = "") -> str:
    printed = ""
    for command in commands:
        say(f"  $ {command}")
        printed = box(command.replace("eaj_...", token), deadline=600)
    return printed


def log(box: Box, unit: str) -> str:
    return box(f"journalctl -u {unit} --no-pager -n 40 -o cat")


def registered(box: Box) -> int:
    return log(box, "edge-node").count(f"registered with {NAME}:50051")


def test(box: Box) -> None:
    # As an operator's name server would have it.
    box(f"echo 127.0.0.1 {NAME} >> /etc/hosts")
    say("the aggregator, as docs/pi.md says")
    follow(box, block("node")[:2] + block("aggregator")[:-1])
    box(f"echo EDGE_AGGREGATOR_TLS_NAME={NAME} >> /etc/edge-attention/edge-aggregator.env")
    follow(box, block("aggregator")[-1:])
    wait_for(
        "the aggregator to listen", lambda: "listening on 0.0.0.0:50051" in log(box, "edge-aggregator"), 60
    )
    tool = "/opt/edge-attention/bin/edge-aggregator token create --state /var/lib/edge-aggregator"
    (create,) = re.findall(r"^sudo (\S+/edge-aggregator token create .*)$", PAGE, re.MULTILINE)
    need("the page creates the token as this test does", create.startswith(tool), create)
    token = re.search(r"eaj_\w+", box(create))
    access = re.search(r"eat_\w+", box(f"{tool} --role user"))
    if not token or not access:
        raise Failed("`token create` printed no token")
    say("the node, as docs/pi.md says, with data")
    follow(box, block("node")[2:-2], token[0])
    (box.root / "srv/diagnoses.csv").write_text(
        "id,benign\n" + "".join(f"P{n},{n % 4}\n" for n in range(100))
    )
    box("chmod 644 /srv/diagnoses.csv; printf '%s\n' EDGE_NODE_DATA=diagnoses=/srv/diagnoses.csv "
        "EDGE_NODE_ALLOW_RELEASE=attention >> /etc/edge-attention/edge-node.env")  # fmt: skip
    follow(box, block("node")[-2:], token[0])
    wait_for("the node to register", lambda: registered(box) == 1, 600)
    (box.root / "root/attend.py").write_text(ATTEND)
    attend = f"/opt/edge-attention/bin/python /root/attend.py {NAME}:50051 {access[0]}"
    need("an attend equals float64", "exact" in box(f"{attend} before"), log(box, "edge-node"))
    say("  an attend equals float64")
    for unit in ("edge-node", "edge-aggregator"):
        user = box(f"stat -c %U /proc/$(systemctl show -P MainPID {unit})").strip()
        need(f"{unit} runs as a user of its own", user == unit, user)
        kept = box(f"stat -Lc '%U %a' /var/lib/{unit}").split()
        need(f"/var/lib/{unit} is its own, and nobody else's", kept == [unit, "700"], kept)
        rating = box(f"systemd-analyze security --no-pager {unit} | tail -1")
        need(f"systemd rates {unit} OK", "OK" in rating, rating)
        say(f"  {rating.strip().lstrip('→ ')}")
    contained(box, access[0])
    said = log(box, "edge-node") + log(box, "edge-aggregator")
    refused = [
        line for line in said.splitlines() if re.search("not permitted|Read-only|Permission denied", line)
    ]
    need("nothing the units forbid was missed", not refused, refused)
    say("killed, the node comes back by itself, without its token")
    box("rm /etc/credstore/edge-node.join-token; systemctl kill -s KILL edge-node")
    wait_for("the node to register again", lambda: registered(box) == 2, 600)
    need("an attend equals float64 again", "exact" in box(f"{attend} after"), log(box, "edge-node"))
    say("stopped, it drains and ends well within its time")
    box("systemctl stop edge-node edge-aggregator")
    for unit in ("edge-node", "edge-aggregator"):
        result = box(f"systemctl show -P Result {unit}").strip()
        need(f"{unit} ended as it should", result == "success", f"{result}\n{log(box, unit)}")


def contained(box: Box, token: str) -> None:
    say("a user's own graphs run shut in, and one that ends its process costs the node nothing")
    shutil.copy(ROOT / "tests" / "compose" / "foreign.py", box.root / "root")
    (box.root / "root/token").write_text(token)
    run = "EDGE_ATTENTION_AGGREGATOR=%s:50051 EDGE_ATTENTION_TOKEN_FILE=/root/token %s /root/foreign.py %s"
    name = box("hostname").strip()
    printed = box(run % (NAME, "/opt/edge-attention/bin/python", f"{name} diagnoses benign"))
    found = last_object(printed)
    need("the answers are exact, and the same after it", found["exact"] and found["same"], found)
    need("the answer is the column's mean", abs(found["mean"] - 1.5) < 1e-6, found)
    need("the call fails, and says no more than that", "failed on private data" in found["killed"], found)
    said = box("journalctl -u edge-node --no-pager -o cat")
    need("the node's own log says what happened", "signal 8 (SIGFPE)" in said, said)
    shut = re.findall(r"cell is process \d+, shut in by: (.*)", said)
    need("the cell is shut in", shut and all("Landlock" in s and "seccomp" in s for s in shut), shut)
    need("the unit goes on with the same process", registered(box) == 1, log(box, "edge-node"))
    say(f"  shut in by: {shut[-1]}; {found['killed']}")


def main() -> int:
    why = lacking()
    if why:
        print(f"test-systemd was not run: {why}")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    say(f"Debian with systemd is kept in {cache_folder()}")
    with tempfile.TemporaryDirectory(prefix="edge-systemd-") as folder:
        try:
            with Box(Path(folder)) as box:
                say("a Debian box runs, its first process is systemd")
                try:
                    test(box)
                except Failed:
                    for unit in ("edge-aggregator", "edge-node"):
                        complain(f"--- {unit}\n{box(f'journalctl -u {unit} --no-pager -n 25', check=False)}")
                    raise
        except Failed as error:
            complain(f"FAILED: {error}")
            print("0 passed, 1 failed")
            return 1
        except KeyboardInterrupt:
            complain("interrupted; what was started has been ended")
            return 130
    print("1 passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
