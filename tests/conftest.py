"""Settings for all tests.

CHUMOKU_EXAMPLES says how many examples hypothesis tries in each test: 200 when not given.
"""

import os

from hypothesis import HealthCheck, settings

# No deadline: no test may depend on how fast the machine is. CI repeats the same examples.
ci = bool(os.environ.get("CI"))
settings.register_profile(
    "chumoku",
    max_examples=int(os.environ.get("CHUMOKU_EXAMPLES", "200")),
    deadline=None,
    derandomize=ci,
    print_blob=ci,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("chumoku")
