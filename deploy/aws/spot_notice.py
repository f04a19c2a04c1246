"""Waits for AWS's notice that this spot instance ends, then has Ray put no more work on the node and tell its workers.

    spot_notice.py ADDRESS [--metadata URL] [--every SECONDS]

ADDRESS is the node's own, as `ray start` was told it. AWS gives two minutes' notice at the instance's metadata service
(`spot/instance-action` answers 404 until then). Needs intermoco's environment; ends once the notice was passed on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

METADATA = "http://169.254.169.254"


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell Ray of a spot interruption.")
    parser.add_argument("address", help="the node's own address")
    parser.add_argument("--metadata", default=METADATA, help="the instance's metadata service")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two questions")
    words = parser.parse_args()
    while (end := notice(words.metadata)) is None:
        time.sleep(words.every)
    left = max(0, int((end - datetime.now(UTC)).total_seconds()))
    drain(words.address, left)
    print(f"{words.address}: Ray was told that {left} s are left", flush=True)


def notice(metadata: str) -> datetime | None:
    """When the instance will be taken away; None as long as nothing was said, or the service gave no answer."""
    try:
        asked = Request(
            f"{metadata}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        with urlopen(asked, timeout=2) as answer:
            token = answer.read().decode()
        asked = Request(
            f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urlopen(asked, timeout=2) as answer:
            said = json.load(answer)
    except HTTPError as error:
        if error.code != 404:
            print(f"{metadata}: {error}", file=sys.stderr, flush=True)
        return None
    except (URLError, TimeoutError) as error:
        print(f"{metadata}: {error}", file=sys.stderr, flush=True)
        return None
    return datetime.fromisoformat(said["time"])


def drain(address: str, seconds: int) -> None:
    """Ray lets the node's work go on for `seconds` and gives it nothing new; Ray Train's workers hear of it."""
    import ray

    ray.init(address="auto", log_to_driver=False)
    (node,) = (n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == address)
    gcs = ray.get_runtime_context().gcs_address
    ray.shutdown()
    words = ["--node-id", node, "--address", gcs, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "spot interruption", "--deadline-remaining-seconds", str(seconds)]
    subprocess.run([str(Path(sys.executable).with_name("ray")), "drain-node", *words], check=True)


if __name__ == "__main__":
    main()
