"""Imported by the server of `processes.py` after all else: what it holds by now is no garbage in any process it forks.

A collection would look through half a million objects in each of them, and would copy the pages that they stand on.
"""

import gc

gc.collect()
gc.freeze()
