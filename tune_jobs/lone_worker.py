"""What Ray Train is told of a lone worker. Its controller imports this module, which imports no torch."""

from __future__ import annotations

from ray.train.backend import BackendConfig


class LoneWorker(BackendConfig):  # type: ignore[misc]  # ray has no types
    """No process group: it would listen on every interface of the machine.

    In the place of a TorchConfig, whose import costs the controller seconds and half a gigabyte.
    """

    backend = "none"  # TorchTrainer looks whether one is named
