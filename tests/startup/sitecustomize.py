"""Run by Python as it starts, in every process that a test starts: see tests/conftest.py.

Importing torch, Ray and MLflow makes a million objects, none of which goes again: to look through them for cycles
takes a quarter of the time. A process of a test is over before its cycles fill the memory.
"""

import gc

gc.set_threshold(50_000, 20, 100)
