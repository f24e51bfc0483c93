"""The clock of all deadlines."""

from __future__ import annotations

import time
from functools import partial

# Not time.monotonic itself: tools that freeze the clock of a test (freezegun) replace that function in
# every module. The kernel's waits are not frozen, so a wait would end before its deadline, forever.
monotonic = partial(time.monotonic)
