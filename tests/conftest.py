"""Settings for all tests.

CHUMOKU_EXAMPLES=extended runs hypothesis on 10,000 examples for each test in place of 200.
"""

import os

from hypothesis import HealthCheck, settings

# No deadline: no test may depend on how fast the machine is. CI repeats the same examples.
ci = bool(os.environ.get("CI"))
for name, examples in (("default", 200), ("extended", 10_000)):
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=ci,
        print_blob=ci,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("CHUMOKU_EXAMPLES", "default"))
