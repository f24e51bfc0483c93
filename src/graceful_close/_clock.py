"""The clock of all deadlines."""

from __future__ import annotations

import time
from functools import partial

# Not time.monotonic itself: tools that freeze the clock of a test (freezegun) replace that function in
# every module. The kernel's waits are not frozen: each would end as far before its deadline as the wait
# before it, and the program would spin.
monotonic = partial(time.monotonic)
