"""Every case of test_kernels.py and test_backward.py for the Triton kernel, on demand.

On a GPU: pytest tests/every_triton.py. In Triton's interpreter: python3 run.py test --extended
triton, which takes half an hour. Cases that the kernel refuses are skipped in its words;
bfloat16 in the interpreter too, which multiplies it wrongly.
"""

from types import FunctionType

import pytest
import test_backward
import test_kernels
from cases import bfloat16
from on_gpu import IN_INTERPRETER, KERNEL

pytestmark = [
    pytest.mark.parametrize("kernel", [KERNEL], ids=["triton"]),
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]

# They call attention() by the kernel's name, with NumPy's arrays.
BY_NAME = {"test_a_bias_whose_gradient_is_not_wanted"}


@pytest.fixture(autouse=True)
def served(request):
    """Skips what the kernel, or the interpreter, cannot compute."""
    given = request.node.callspec.params
    if IN_INTERPRETER and given.get("dtype") == bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    case = given.get("case")
    if case is not None and max(case.query[-1], case.value_width) > 256:
        pytest.skip("triton: it computes widths up to 256")
    if given.get("dtype") == "float64":
        pytest.skip("triton: it computes no float64")


def cases_of(module):
    """Its tests of kernels, without the marks that name the kernels of the host."""
    for name, test in vars(module).items():
        names = getattr(test, "__code__", cases_of.__code__).co_varnames
        if not name.startswith("test_") or "kernel" not in names or name in BY_NAME:
            continue
        own = FunctionType(test.__code__, test.__globals__, name, None, test.__closure__)
        marks = getattr(test, "pytestmark", [])
        own.pytestmark = [mark for mark in marks if mark.args[:1] != ("kernel",)]
        yield f"{name}_of_{module.__name__.removeprefix('test_')}", own


globals().update(cases_of(test_kernels))
globals().update(cases_of(test_backward))
