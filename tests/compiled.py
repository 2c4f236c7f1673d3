"""Compiles the Triton kernel for a Hopper GPU (sm_90) where there is none, and says what came out.

python tests/compiled.py [forward seeing top decoding ...]: for each kernel
its shared memory, products on tensor cores (wgmma), copies of 16 bytes that are fetched ahead
(cp.async), loads of single numbers of 16 bits, subtractions that were not fused with a product,
registers and spilled bytes. As JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from chumoku.dropout import Dropout
from chumoku.kernels import KERNELS, Call, Upstream
from chumoku.mask import Causal, Custom, Documents, Lengths
from chumoku.statistics import Watch

KERNEL = next(kernel for kernel in KERNELS if kernel.name == "triton")
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


class Hopper:
    """What Triton asks of a GPU before it launches something there."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def registers(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that did not find room in them."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [PTXAS, "-arch=sm_90a", "-v", file.name, "-o", os.devnull]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) reg", told), re.search(r"(\d+) bytes spill sto", told)
    return int(used[1]) if used else 0, int(spilled[1]) if spilled else 0


def call_of(dtype: torch.dtype, heads: int, queries: int, keys: int, width: int) -> Call:
    """A causal call of one batch entry, eight heads to a key head where there are so many."""
    shape = (1, max(1, heads // 8), keys, width)
    key, value = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    query = torch.empty((1, heads, queries, width), dtype=dtype)
    options = (None, width**-0.5, None, None, None, Watch())
    return Call(query, key, value, Causal(), *options)


def compile_all(case: str, width: int, dtype: torch.dtype) -> None:
    """Calls the kernel as one case does; nothing is launched."""
    call = call_of(dtype, 2, 4096, 4096, width)
    if case == "forward":
        KERNEL.run(call)
    elif case == "seeing":
        KERNEL.run(replace(call, watch=Watch(entropy=True, saturation=True)))
    elif case == "top":
        KERNEL.run(replace(call, watch=Watch(top=8)))
    elif case == "decoding":
        KERNEL.run(call_of(dtype, 32, 1, 16384, width))
    elif case == "totals":
        watch = Watch(received=True, picture=(8, 8), groups=np.arange(4096) % 5)
        KERNEL.run(replace(call, watch=watch))
        KERNEL.weights(call, np.arange(9), np.arange(9), None)
    elif case == "masked":
        cells = torch.ones((4096, 4096), dtype=torch.bool)
        KERNEL.run(replace(call, mask=(Causal() & Lengths(3000)) | cells))
    elif case == "function":
        ask = Custom(lambda b, h, i, j: i >= j)
        KERNEL.run(replace(call_of(dtype, 2, 512, 512, width), mask=ask | (ask & Lengths(300))))
    else:
        rows, bias_shape = torch.empty(call.query.shape[:-1]), ()
        given = (call.query, call.query, rows)
        if case == "options":
            bias_shape = (4096,)
            call = replace(
                call,
                bias=torch.empty(4096, dtype=dtype).expand(1, 2, 4096, 4096),
                sinks=torch.empty(2, dtype=dtype),
                softcap=30.0,
                dropout=Dropout(0.1, 2**40),
                mask=Documents(np.arange(4096) // 100) & Documents(np.arange(4096) % 9),
                watch=Watch(top=20, distance=True, entropy=True, saturation=True),
            )
            KERNEL.run(call)
            given = (*given, rows, rows)
        KERNEL.backward(call, Upstream(*given, bias_shape=bias_shape))


CASES = (
    "forward",
    "seeing",
    "top",
    "decoding",
    "masked",
    "function",
    "totals",
    "backward",
    "options",
)


def main() -> None:
    """Compiles what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", default=[], help=", ".join(CASES))
    parser.add_argument("--width", type=int, nargs="+", default=[128])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    driver.set_active(Hopper())
    compiled = JITFunction.run
    found: list[dict[str, Any]] = []

    def run(kernel: Any, *arguments: Any, **more: Any) -> Any:
        made = compiled(kernel, *arguments, **(more | {"warmup": True}))
        ptx = made.asm["ptx"]
        used, spilled = registers(ptx)
        found.append(
            {
                "kernel": kernel.fn.__name__,
                "width": width,
                "shared": made.metadata.shared,
                "wgmma": ptx.count("wgmma.mma_async"),
                "fetched": ptx.count("cp.async.cg.shared"),
                "single": len(re.findall(r"ld\.global\S*\.b16", ptx)),
                "subtracted": len(re.findall(r"\bsub\.(?:rn\.)?(?:ftz\.)?f32", ptx)),
                "registers": used,
                "spilled": spilled,
            }
        )
        return made

    JITFunction.run = run
    for width in given.width:
        for case in given.cases or CASES:
            compile_all(case, width, getattr(torch, given.dtype))
    if given.json:
        print(json.dumps(found))
        return
    for one in found:
        print(
            *(
                f"{value:>15}" if n == 0 else f"{name} {value:>6}"
                for n, (name, value) in enumerate(one.items())
            ),
            sep="  ",
        )


if __name__ == "__main__":
    main()
