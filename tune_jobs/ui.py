"""The verb `ui`: MLflow's page on the store that a study writes to, on 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ssl_core.errors import InputError
from tune_jobs.store import Store


def serve(study: str | None, overrides: Sequence[str], output: Path, port: int) -> int:
    """Run MLflow's server until Ctrl-C; its exit status. A remote tracking server has a page of its own: say where."""
    from tune_jobs.tracking import default_uri, mask, ui_command, ui_page

    store = Store(output)
    uri = default_uri(store.root)
    if study is not None:
        from tune_jobs.ablate import tracking_uri
        from tune_jobs.loading import load

        uri = tracking_uri(load(study, overrides), store)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow runs at {mask(uri)}: open it there")
        return 0
    if uri == default_uri(store.root) and not (store.root / "mlflow.db").is_file():
        raise InputError(f"no MLflow store in {store.root} yet: run `intermoco ablate` first, with the same --output")
    command, environment = ui_command(uri, store.root, port)
    print(f"MLflow: {ui_page(port)}  (Ctrl-C stops it)", flush=True)
    try:
        return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    except KeyboardInterrupt:
        return 0
