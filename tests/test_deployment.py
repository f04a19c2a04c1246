"""cluster.yaml, the Kubernetes manifests, and every command that README.md and docs/ tell a reader to type."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / name).read_text()))


def every(node: Any, key: str) -> Iterator[Any]:
    """The values of a key at any depth."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        for value in node.values():
            yield from every(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from every(value, key)


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """cluster.yaml with Ray's defaults filled in: what `ray up` works with."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(whole)
    return whole


def test_ray_accepts_the_cluster_and_none_of_its_own_commands_are_left(prepared: dict[str, Any]) -> None:
    groups = prepared["available_node_types"]
    assert groups["accelerator"]["min_workers"] >= 1  # a study plans with what is there
    assert groups["accelerator_spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in {**groups["head"]["node_config"], **groups["accelerator"]["node_config"]}
    commands = [*every(prepared, "setup_commands"), *every(prepared, "head_setup_commands")]
    commands += [*every(prepared, "worker_setup_commands"), *every(prepared, "initialization_commands")]
    for command in [one for each in commands for one in each]:
        assert re.fullmatch(r"bash ~/intermoco/deploy/\w+\.sh( \S+)?", command), command
        assert (ROOT / "deploy" / "aws" / Path(command.split()[1]).name).is_file()
    spot = groups["accelerator_spot"]["worker_setup_commands"]
    assert set(prepared["setup_commands"]) < set(spot)  # a group's own commands replace those of all


def test_every_node_brings_its_network_and_its_rights(prepared: dict[str, Any]) -> None:
    """Without them Ray makes a group open to the world on port 22, and a role with all of EC2 and S3."""
    assert prepared["provider"]["use_internal_ips"] is True
    for name, group in prepared["available_node_types"].items():
        config = group["node_config"]
        assert config["SecurityGroupIds"], name
        assert config["SubnetIds"], name
        assert config["IamInstanceProfile"], name
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])
    head, *workers = (g["node_config"]["IamInstanceProfile"] for g in prepared["available_node_types"].values())
    assert head not in workers


def test_ray_starts_with_a_token_and_a_dashboard_that_is_not_open(prepared: dict[str, Any]) -> None:
    starts = [*prepared["head_start_ray_commands"][1:], *prepared["worker_start_ray_commands"][1:]]
    assert len(starts) == 2
    for command in starts:
        assert "export RAY_AUTH_MODE=token; ray start" in command
        check_ray(
            shlex.split(command.partition("ray start")[2].replace("$(hostname -I | cut -d' ' -f1)", "IP")), "start"
        )
    assert "--dashboard-host=$(hostname -I" in starts[0]
    assert prepared["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", ["cluster.yaml", "deploy/aws/node.sh", "deploy/aws/head.sh", "deploy/aws/spot.sh"])
def test_nothing_of_aws_listens_to_everybody_and_holds_a_secret(path: str) -> None:
    text = (ROOT / path).read_text()
    assert "0.0.0.0" not in text
    assert not re.search(r"(?i)(AKIA[0-9A-Z]{16}|auth_token=|password=|RAY_AUTH_TOKEN=|://[^/\s:]+:[^/\s@]+@)", text)
    for server in re.findall(r"mlflow server .*", text):
        assert "--host 127.0.0.1" in server
    for relay in re.findall(r"socat .*", text):
        assert "postgresql" in relay or "bind=127.0.0.1" in relay


def test_versions_are_those_of_the_constraints(prepared: dict[str, Any]) -> None:
    wheel = f"intermoco-{PROJECT['version']}-py3-none-any.whl"
    assert prepared["file_mounts"][f"~/intermoco/{wheel}"] == f"dist/{wheel}"
    assert prepared["file_mounts"]["~/intermoco/constraints.txt"] == "constraints.txt"
    assert "--constraint ~/intermoco/constraints.txt" in (ROOT / "deploy/aws/node.sh").read_text()
    assert "--constraint /opt/intermoco/constraints.txt" in (ROOT / "deploy/Dockerfile").read_text()
    (job, *_), (mlflow, *_) = documents("rayjob.yaml"), documents("mlflow.yaml")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == PINNED["ray"]
    images = {*every(job, "image"), *every(mlflow, "image")}
    assert images == {f"registry.example.org/intermoco:{PROJECT['version']}"}
    for extra in PROJECT["optional-dependencies"]["cluster"]:
        name = re.split(r"[^\w-]", extra)[0]
        assert name in PINNED, f"{name} is installed on every node: pin it in constraints.txt"


@pytest.mark.parametrize("script", sorted((ROOT / "deploy" / "aws").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_read_by_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()


def test_the_rayjob_is_what_kuberay_demands() -> None:
    """The fields of ray.io/v1 that are used here, their types, and KubeRay's own checks of them."""
    job, claim, policy = documents("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= {
        *("entrypoint", "submissionMode", "submitterPodTemplate", "backoffLimit", "shutdownAfterJobFinishes"),
        *("ttlSecondsAfterFinished", "rayClusterSpec"),
    }
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec"),
        "workerGroupSpecs",
    }
    assert cluster["authOptions"] == {"mode": "token", "secretName": "intermoco-token"}
    assert cluster["enableInTreeAutoscaling"] is True
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "shared", "mountPath": "/mnt/shared"} in container["volumeMounts"]
        assert (
            group["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        )
    for group in cluster["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert (
            container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
        )
        (workers,) = re.findall(r"resources\.workers=(\d+)", job["spec"]["entrypoint"])
        assert group["minReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"]) >= int(workers)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    labels = list(every(job, "labels"))[1:]
    assert len(labels) == 3  # submitter, head, workers: the policy admits all of them to one another
    assert all(policy["spec"]["podSelector"]["matchLabels"] == each for each in labels)


def test_no_pod_is_root_privileged_or_open() -> None:
    job, mlflow = documents("rayjob.yaml"), documents("mlflow.yaml")
    pods = [*every(job, "template"), *every(job, "submitterPodTemplate"), *every(mlflow, "template")]
    assert len(pods) == 4
    for pod in (each["spec"] for each in pods):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "USER 1000" in (ROOT / "deploy/Dockerfile").read_text()
    for forbidden in ("privileged", "hostNetwork", "hostPID", "hostPath", "hostPort", "NodePort", "LoadBalancer"):
        assert forbidden not in json.dumps([job, mlflow])
    assert not any(document["kind"] == "Secret" for document in [*job, *mlflow])
    server, service, policy = mlflow
    assert policy["spec"]["podSelector"]["matchLabels"] == server["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    assert policy["spec"]["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "intermoco"}}}],
            "ports": [{"protocol": "TCP", "port": 5000}],
        }
    ]


def words_of(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=">&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def parts(page: Path) -> Iterator[list[str]]:
    """Every command of a page's shell blocks, in words, those of `a && b` and of jobs' entrypoints one by one."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.splitlines():
            command: list[str] = []
            for word in [*words_of(line), "&&"]:
                if word != "&&":
                    command.append(word)
                elif command:
                    yield command
                    if command[:2] == ["ray", "exec"]:
                        yield shlex.split(command[3])
                    if "--" in command:
                        yield command[command.index("--") + 1 :]
                    command = []


COMMANDS = {" ".join(command): command for page in PAGES for command in parts(page)}
OURS = {text: words for text, words in COMMANDS.items() if Path(words[0]).name == "intermoco"}
RAYS = {text: words for text, words in COMMANDS.items() if Path(words[0]).name == "ray"}
MLFLOWS = {text: words for text, words in COMMANDS.items() if words[0] == "mlflow"}


def parsed(command: Any, words: list[str]) -> None:
    """Raises click's error where the words are not of a command's form; runs nothing. Typer has a click of its own."""
    with command.make_context(command.name, list(words)) as context:
        if hasattr(command, "resolve_command"):
            name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None, name
            parsed(found, rest)


def check_ray(words: list[str], *verbs: str) -> None:
    from ray.scripts.scripts import cli

    parsed(cli, [*verbs, *words])


@pytest.mark.parametrize("text", OURS)
def test_our_commands_parse(text: str) -> None:
    from tune_jobs.cli import app

    parsed(typer.main.get_command(app), OURS[text][1:])


@pytest.mark.parametrize("text", RAYS)
def test_rays_commands_parse(text: str) -> None:
    words = RAYS[text][1:]
    check_ray(words[: words.index(">")] if ">" in words else words)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of MLflow as its command line is imported
@pytest.mark.parametrize("text", MLFLOWS)
def test_mlflows_commands_parse(text: str) -> None:
    from mlflow.cli import cli

    parsed(cli, MLFLOWS[text][1:])


def test_the_pages_show_every_way() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "cluster.md"):
        text = page.read_text()
        for needed in ("ray up cluster.yaml", "ray attach cluster.yaml --port-forward 8265 --port-forward 5000"):
            assert needed in text
        assert "ray job submit -- intermoco" in text
        assert "RAY_AUTH_MODE=token" in text
    assert len(OURS) > 10
    assert len(RAYS) > 8


def test_an_entrypoint_is_a_command_of_ours() -> None:
    from tune_jobs.cli import app

    job, *_ = documents("rayjob.yaml")
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "intermoco"
    parsed(typer.main.get_command(app), words)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Ray's sockets, 107 bytes in all."""
    with tempfile.TemporaryDirectory(prefix="im-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.timeout(400)
def test_a_cluster_takes_a_job_with_its_token_and_refuses_others(short_folder: Path) -> None:
    """Head and worker in a network of their own, started with the words of docs/cluster.md."""
    private = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0 or subprocess.run([*private, "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    scenario = Path(__file__).with_name("deployment_scenario.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "PYTEST_"))}
    done = subprocess.run(
        [*private, sys.executable, str(scenario), str(short_folder)],
        env={**environment, "HOME": str(short_folder), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["without_token"] == seen["job_without_token"] == 401
    assert seen["wrong_token"] == seen["job_wrong_token"] == 403
    assert seen["dashboard_on_loopback"] is False  # only at the head's own address
    assert seen["bad_job"] == 1, "the job's exit status follows the study's"
    assert seen["job"] == 0, seen["said"]
    assert '"executed"' in seen["said"]
    assert seen["tables"] == ["linear.csv"]
    assert seen["drained"] is True
