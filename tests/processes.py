"""Processes of their own for tests, forked from one that has imported what they need and started no thread.

Forked from a test's own process they could inherit a lock that some thread of it held, and wait for it for ever.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["ssl_core.pretraining", "ssl_core.finetuning", "mlflow.tracking", "tune_jobs.promotion.registry"]
)
