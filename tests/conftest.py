"""Settings for all tests.

CHUMOKU_EXAMPLES says how many examples hypothesis tries in each test: 200 when not given.
"""

import os

import torch
from hypothesis import HealthCheck, settings

# Where there is no GPU, its kernels run in Triton's interpreter. Triton reads this when it is
# imported first, in whichever test that is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
