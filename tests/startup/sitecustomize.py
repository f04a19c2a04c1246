"""Run by Python as it starts, in every process that a test starts: see tests/conftest.py."""

import gc
import os

# Importing torch, Ray and MLflow makes a million objects, none of which goes again: to look through them for cycles
# takes a quarter of the time. A process of a test is over before its cycles fill the memory.
gc.set_threshold(50_000, 20, 100)

# Tests kill processes, not machines: what was written is there without waiting for the disk, be it killed or not.
os.fsync = lambda descriptor: None
