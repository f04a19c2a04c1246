"""A head and a worker with a token, as test_deployment.py asks of them. Run in a network namespace of its own.

    python deployment_scenario.py FOLDER

Prints one line of JSON: what was seen. HOME is FOLDER, so the token is FOLDER/.ray/auth_token.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
DASHBOARD = f"http://{HEAD}:8265"
STUDY = """
study: small
dataset: {source: digits}
seeds: [0]
encoder: {arch: resnet18, stem: small}
pretrain: {epochs: 1, batch_size: 256, moco: {queue: 256}}
arms: {moco: {}}
downstream: {bootstrap: 20, fractions: [], linear: {epochs: 1, min_steps: 2, evaluations: 1}}
probe: null
reuse: null
ks: null
tracking: {uri: "http://127.0.0.1:9"}  # nothing listens there, which costs a study nothing but lateness
"""


def ray(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ray"), *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def submit(*entrypoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return ray("job", "submit", "--address", DASHBOARD, "--", *entrypoint, **environment)


def status(token: str | None, host: str = DASHBOARD) -> int | None:
    """What HTTP says to a question for the jobs; None where nobody listens."""
    asked = urllib.request.Request(f"{host}/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            code: int = answer.status
            return code
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return None


def refusal(said: subprocess.CompletedProcess[str]) -> int | None:
    """The status with which a job was refused, of Ray's words for it."""
    assert said.returncode != 0, said.stdout
    return 401 if "Unauthorized: Missing" in said.stdout else 403 if "Forbidden: Invalid" in said.stdout else None


class Metadata(BaseHTTPRequestHandler):
    """AWS's metadata service on a spot instance: a token to be asked with, nothing at first, then the notice."""

    asked = 0

    def do_PUT(self) -> None:
        self._answer(200, "a-token")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "a-token"
        Metadata.asked += 1
        end = datetime.now(UTC) + timedelta(seconds=120)
        if Metadata.asked == 1:
            self._answer(404, "")
        else:
            self._answer(200, json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}))

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def drained(address: str) -> bool:
    """Whether the node is no longer there for new work within ten seconds of the notice."""
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = [address, "--metadata", f"http://127.0.0.1:{server.server_port}", "--every", "0.2"]
    subprocess.run([sys.executable, str(ROOT / "deploy/aws/spot_notice.py"), *words], check=True, stdout=sys.stderr)
    import ray as client

    client.init(address=f"{HEAD}:6379", log_to_driver=False, _node_ip_address=HEAD)
    for _ in range(50):
        if not any(node["Alive"] for node in client.nodes() if node["NodeManagerAddress"] == address):
            return True
        time.sleep(0.2)
    return False


def main(folder: Path) -> dict[str, Any]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (HEAD, WORKER):
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    token = secrets.token_hex(32)
    (folder / ".ray").mkdir(mode=0o700)
    (folder / ".ray" / "auth_token").write_text(token)
    (folder / "small.yaml").write_text(STUDY)
    (folder / "bad.yaml").write_text(STUDY.replace("epochs", "epoch"))
    os.environ |= {"RAY_AUTH_MODE": "token", "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    os.environ |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    small = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--include-log-monitor=false")
    head = ("--node-ip-address", HEAD, "--port", "6379", "--dashboard-host", HEAD, f"--temp-dir={folder}/r")
    said = ray("start", "--head", *head, *small)
    assert said.returncode == 0, said.stdout
    said = ray("start", "--address", f"{HEAD}:6379", "--node-ip-address", WORKER, *small)
    assert said.returncode == 0, said.stdout

    seen: dict[str, Any] = {
        "without_token": status(None),
        "wrong_token": status("0" * 64),
        "with_token": status(token),
        "dashboard_on_loopback": status(token, "http://127.0.0.1:8265") is not None,
        "job_without_token": refusal(submit("true", RAY_AUTH_MODE="disabled")),
        "job_wrong_token": refusal(submit("true", RAY_AUTH_TOKEN="0" * 64)),
    }
    output = ("--address", "auto", "--output", f"{folder}/runs", "--json")
    seen["bad_job"] = submit("intermoco", "ablate", f"{folder}/bad.yaml", *output).returncode
    job = submit("intermoco", "ablate", f"{folder}/small.yaml", *output)
    seen["job"], seen["said"] = job.returncode, job.stdout[-3000:]
    seen["tables"] = sorted(table.name for table in folder.glob("runs/small/tables/linear.csv"))
    seen["drained"] = drained(WORKER)
    return seen


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
