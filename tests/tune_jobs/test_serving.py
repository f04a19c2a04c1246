"""`mlflow models serve` on a real model, in an environment without Ray, Optuna or this checkout: numbers and errors."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.config import EncoderConfig, FinetuneConfig
from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import TEST, Dataset
from ssl_core.data.packing import pack
from ssl_core.errors import DataError
from ssl_core.finetuning import finetune
from tests.ssl_core.finetuning_runs import Recorder
from tune_jobs.promotion.package import form_of, save_model

pytestmark = pytest.mark.timeout(240)

#: Importing any of these is an error where the model is served.
ABSENT = ("ray", "optuna", "tune_jobs", "analysis", "pydicom")
HOOK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


@dataclass(frozen=True)
class Made:
    model: Path
    dataset: Dataset
    stored: dict[str, Any]
    environment: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model of all 1,797 digits, fine-tuned for two steps and saved; 269 images are tested."""
    folder = tmp_path_factory.mktemp("served")
    dataset = pack(DatasetConfig(source="digits"), folder / "data")
    (folder / "tuned").mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder = EncoderConfig(arch="resnet18", stem="standard")
    config = FinetuneConfig(encoder=encoder, mode="scratch", epochs=1, min_steps=2, evaluations=1, bootstrap=2)
    finetune(config, dataset, folder / "tuned", Recorder(), encoder=None, device="cpu")
    save_model(folder / "model", tuned=folder / "tuned", data=folder / "data")
    torch.set_num_threads(threads)
    with np.load(folder / "tuned" / "predictions.npz") as file:
        stored = dict(file)
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(folder / "hook"),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Made(folder / "model", dataset, stored, environment, folder)


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", str(made.model), "--env-manager", "local"]
    with (made.folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=made.folder,
            env=made.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: uvicorn is a child of a child
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 180
        while not alive(address):
            assert process.poll() is None, (made.folder / "server.log").read_text()
            assert time.monotonic() < until, (made.folder / "server.log").read_text()
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def alive(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post(address: str, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
    request = urllib.request.Request(f"{address}/invocations", data=body, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def split(images: list[Any]) -> bytes:
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}}).encode()


def as_file(pixels: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, pixels)
    else:
        Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(file, kind)
    return file.getvalue()


def values(answer: Any, made: Made) -> np.ndarray[Any, Any]:
    rows = answer["predictions"]
    assert all(list(row) == list(made.dataset.class_names) for row in rows)
    return np.array([list(row.values()) for row in rows])


@pytest.mark.parametrize(("kind", "together"), [("npy", 200), ("PNG", 32), ("npy", 1)])
def test_200_test_images_get_the_stored_probabilities(made: Made, server: str, kind: str, together: int) -> None:
    assert (made.stored["test_ids"] == made.dataset.ids[made.dataset.rows(TEST)]).all()
    n = 200 if together > 1 else 20
    images = [text(as_file(made.dataset.images[int(row)], kind)) for row in made.dataset.rows(TEST)[:n]]
    found = []
    for start in range(0, n, together):
        status, answer = post(server, split(images[start : start + together]))
        assert status == 200, answer
        found.append(values(answer, made))
    assert np.abs(np.concatenate(found) - made.stored["test_probabilities"][:n]).max() < 1e-6


def test_every_request_format_gives_the_same(made: Made, server: str) -> None:
    image = text(as_file(made.dataset.images[0]))
    bodies = [
        split([image]),
        json.dumps({"dataframe_records": [{"image": image}]}).encode(),
        json.dumps({"instances": [{"image": image}]}).encode(),
        json.dumps({"inputs": {"image": [image]}}).encode(),
    ]
    answers = [post(server, body) for body in bodies]
    assert [status for status, _ in answers] == [200] * 4, answers
    assert all(answer == answers[0][1] for _, answer in answers)
    assert post(server, f"image\n{image}\n".encode(), "text/csv") == answers[0]


def test_any_size_is_taken(made: Made, server: str) -> None:
    colour = np.random.default_rng(0).integers(256, size=(700, 500, 3), dtype=np.uint8)
    status, answer = post(server, split([text(as_file(colour)), text(as_file(colour, "npy"))]))
    assert status == 200
    png, npy = values(answer, made)
    assert np.abs(png - npy).max() < 1e-6
    assert png.sum() == pytest.approx(1)


def bad() -> dict[str, tuple[bytes, str]]:
    """Requests that cannot be answered, and what the answer must say."""
    good = text(as_file(np.zeros((8, 8), np.uint8)))
    whole = as_file(np.random.default_rng(0).integers(256, size=(99, 99), dtype=np.uint8))
    blank = io.BytesIO()
    Image.new("L", (10_000, 5_000)).save(blank, "PNG")
    return {
        "malformed bytes": (split([good, text(b"\xff\xd8\xff no JPEG")]), "image 1 is no image of a known format"),
        "cut short": (split([text(whole[: len(whole) // 2])]), "image 0 is cut short"),
        "no base64": (split(["*** ***"]), "image 0 is empty"),
        "wrong shape": (split([text(as_file(np.zeros((8, 8, 4), np.uint8), "npy"))]), "image 0 has shape (8, 8, 4)"),
        "wrong type": (split([text(as_file(np.full((8, 8), np.nan), "npy"))]), "image 0 is float64; scale"),
        "DICOM without pydicom": (split([text(bytes(128) + b"DICM")]), "needs the package pydicom"),
        "empty batch": (split([]), "no images were given"),
        "no rows at all": (b'{"dataframe_records": []}', "image"),
        "50 megapixels": (split([text(blank.getvalue())]), "image 0 is 10000 x 5000 pixels, more than"),
        "wrong column": (b'{"dataframe_split": {"columns": ["picture"], "data": [["aaaa"]]}}', "missing inputs"),
        "NaN": (split([float("nan")]), "image"),
        "null": (split([None]), "image"),
        "a list of numbers": (split([[[0, 1], [2, 3]]]), "image"),
        "no JSON": (b'{"dataframe_split": ', "valid JSON"),
        "no UTF-8": (b"\xff\xfe\x00", "valid JSON"),
        "another key": (b'{"images": []}', "dataframe_split"),
        "60 MB of text": (split(["A" * 60_000_000]), "image 0 is no image of a known format"),
    }


@pytest.mark.parametrize("what", sorted(bad()))
def test_what_cannot_be_answered_is_a_clear_4xx_and_the_server_lives_on(server: str, what: str) -> None:
    body, says = bad()[what]
    status, answer = post(server, body)
    assert 400 <= status < 500, (status, answer[:2000])
    assert says in answer, answer[:2000]
    assert alive(server)
    assert post(server, split([text(as_file(np.zeros((8, 8), np.uint8)))]))[0] == 200


def test_it_loads_and_predicts_where_nothing_else_of_us_is(made: Made) -> None:
    code = (
        "import sys, mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({str(made.model)!r})\n"
        f"print(model.predict(pd.read_json({str(made.model / 'input_example.json')!r}, orient='split')).to_json())\n"
        "import ssl_core\n"
        f"assert ssl_core.__file__.startswith({str(made.model)!r}), ssl_core.__file__\n"
        f"assert not {set(ABSENT)!r} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=made.environment,
        cwd=made.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) == set(made.dataset.class_names)


def test_mlflow_models_predict(made: Made) -> None:
    asked = made.folder / "request.json"
    rows = made.dataset.rows(TEST)[:3]
    asked.write_bytes(split([text(as_file(made.dataset.images[int(row)])) for row in rows]))
    command = ["-m", "mlflow", "models", "predict", "-m", str(made.model), "--env-manager", "local", "-i", str(asked)]
    answered = made.folder / "answer.json"
    done = subprocess.run(
        [sys.executable, *command, "-o", str(answered)],
        env=made.environment,
        cwd=made.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.abs(values(json.loads(answered.read_text()), made) - made.stored["test_probabilities"][:3]).max() < 1e-6


def test_the_model_says_how_it_was_made(made: Made) -> None:
    files = {p.relative_to(made.model).as_posix() for p in made.model.rglob("*") if p.is_file()}
    assert {"MLmodel", "served.py", "artifacts/model.pt", "artifacts/preprocessing.json"} <= files
    assert not [f for f in files if f.endswith(".pkl") or f.startswith("code/tune_jobs")]
    facts = json.loads((made.model / "artifacts" / "preprocessing.json").read_text())
    assert facts["form"] == {"size": 8, "crop": None, "channels": 1, "intensity": "image"}
    assert facts["temperature"] == 1.0
    asked = (made.model / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in asked} >= {"mlflow", "torch", "torchvision", "numpy", "pillow"}
    assert not [line for line in asked if line.startswith(("ray", "optuna"))]


def test_data_that_does_not_say_how_it_was_packed_is_refused(made: Made, tmp_path: Path) -> None:
    facts = json.loads((made.folder / "data" / "dataset.json").read_text())
    del facts["details"]["form"]
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="does not say how its images were packed"):
        save_model(tmp_path / "model", tuned=made.folder / "tuned", data=tmp_path)
    assert not (tmp_path / "model").exists()
    assert form_of(made.folder / "data").size == 8
