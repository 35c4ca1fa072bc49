"""For every test: what hypothesis is to do, state machines that are watched, and Ctrl-C.

Hypothesis has no deadline (a slow machine is not a failure), and the same examples in every CI run.
"""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings
from machines import watch_all

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# What runs in the background of a shell ignores SIGINT, and so do its children: Ctrl-C could not be tried.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

watch_all()
