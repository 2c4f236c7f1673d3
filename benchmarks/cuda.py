"""The CUDA kernel on the GPU at hand: built, checked, timed, one short table at the end.

    python benchmarks/run.py --device cuda                       # everything, some ten minutes
    python benchmarks/run.py --device cuda --parts check,decode  # some parts
    python benchmarks/run.py --device cuda --lengths 512,8192    # some lengths
    python benchmarks/run.py --device cuda --save NAME           # also benchmarks/results/NAME.json

Parts: check (errors beside PyTorch's own against float64, the same bits in every run), sanitize
(compute-sanitizer, memcheck and racecheck, on small calls), forward and training (beside PyTorch's
flash and cuDNN backends and FlexAttention), seeing (what facts cost, and what it costs to hold the
weights instead), decode (one query over long caches). Contenders take turns; times are medians of
CUDA events; rates are told beside two ceilings measured in the same run, a large bfloat16 product
and a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = ("check", "sanitize", "forward", "training", "seeing", "decode")
TOKENS, MODEL = 16384, 2048
ROUNDS, MILLISECONDS = 9, 20.0

Call = Callable[[], Any]


def built() -> None:
    """Makes chumoku importable here: as it is, or compiled into a folder of its own.

    That asks for g++ and the packages scikit-build-core, nanobind and nanobind-backend; a machine
    without a network needs the last of them as a wheel.
    """
    try:
        import chumoku  # noqa: F401
    except ImportError:
        folder = ROOT / "build" / "cuda"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
        subprocess.run([*pip, "--no-deps", "--upgrade", "--target", folder, ROOT], check=True)
        sys.path.insert(0, str(folder))


class Bench:
    """The device, its ceilings, and everything that was found."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        self.torch, self.options = torch, options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.found: dict[str, Any] = {"machine": self.machine(), "rows": [], "failed": []}
        self.flops = self.bytes = 1.0

    def machine(self) -> dict[str, str]:
        """What the figures come from."""
        import triton

        torch = self.torch
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        return {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}

    def arrays(self, *shapes: tuple[int, ...], dtype: Any = None) -> list[Any]:
        """Normal numbers."""
        torch = self.torch
        maker = torch.Generator(device=self.device).manual_seed(0)
        made = (torch.randn(s, device=self.device, generator=maker) for s in shapes)
        return [x.to(dtype or torch.bfloat16) for x in made]

    def once(self, call: Call, times: int) -> float:
        """Milliseconds that one of some calls takes."""
        torch = self.torch
        if self.device.type != "cuda":
            begun = time.perf_counter()
            for _ in range(times):
                call()
            return 1e3 * (time.perf_counter() - begun) / times
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / times

    def times(self, calls: dict[str, Call]) -> dict[str, float]:
        """Median milliseconds of each, taken in turns; those that fail say why and are left out."""
        many: dict[str, int] = {}
        for name, call in calls.items():
            try:
                self.once(call, 1)
                many[name] = max(1, min(200, int(MILLISECONDS / max(self.once(call, 2), 1e-3))))
            except Exception as error:  # a peer's own errors are of every kind
                if name.startswith("chumoku"):
                    self.failed(name, error)
                else:
                    print(f"    {name}: {str(error).strip().split(chr(10))[0][:100]}", flush=True)
        rounds: dict[str, list[float]] = {name: [] for name in many}
        for turn in range(self.options.rounds):
            for name in many if turn % 2 else reversed(many):
                rounds[name].append(self.once(calls[name], many[name]))
        return {name: statistics.median(spent) for name, spent in rounds.items()}

    def failed(self, what: str, error: Exception) -> None:
        """Notes what went wrong; the run goes on, unless the GPU cannot."""
        text = str(error).strip().split("\n")[0][:100]
        print(f"    {what}: {type(error).__name__}: {text}", flush=True)
        self.found["failed"].append(f"{what}: {text}")
        if "illegal" in text or "unspecified launch" in text:
            raise error

    def row(self, part: str, case: str, **facts: Any) -> None:
        """Notes one row of the table."""
        self.found["rows"].append({"part": part, "case": case, **facts})
        shown = "  ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()
        )
        print(f"  {part:<9} {case:<34} {shown}", flush=True)

    def ceilings(self) -> None:
        """A large bfloat16 product in TFLOP/s, and a copy in GB/s, read and written."""
        torch, n = self.torch, 8192 if self.device.type == "cuda" else 256
        a, b = self.arrays((n, n), (n, n))
        c, d = torch.empty((2, n, n, 4), dtype=torch.float32, device=self.device)
        spent = self.times({"product": lambda: a @ b, "copy": lambda: d.copy_(c)})
        self.flops = 2 * n**3 / spent["product"] / 1e9
        self.bytes = 2 * c.numel() * 4 / spent["copy"] / 1e6
        self.row("ceiling", "product", **{"TFLOP/s": self.flops})
        self.row("ceiling", "copy", **{"GB/s": self.bytes})

    # Correct

    def check(self) -> None:
        """Errors against float64 beside PyTorch's own; the same bits in every run."""
        import chumoku

        torch = self.torch
        cases = [(64, 1024, None), (128, 1000, 37), (256, 300, None), (33, 700, 65), (128, 1, 5000)]
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for width, queries, keys in cases:
                keys = keys or queries
                shapes = ((2, 4, queries, width), (2, 4, keys, width), (2, 4, keys, width))
                q, k, v = self.arrays(*shapes, dtype=dtype)
                given = torch.randn_like(q)
                exact = self.gradients(math_of, *(x.double() for x in (q, k, v, given)))
                theirs = self.gradients(sdpa_of, q, k, v, given)
                ours = self.gradients(ours_of, q, k, v, given)
                again = self.gradients(ours_of, q, k, v, given)
                pairs = list(zip(ours, theirs, exact, strict=True))
                errors = [(distance(a, c), distance(b, c)) for a, b, c in pairs]
                worst = max(mine / max(peer, 1e-9) for mine, peer in errors)
                same = all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
                _, seen = chumoku.attention(q, k, v, watch=chumoku.Watch(top=8))
                top = exact_top(q, k, 8)
                named = float((seen.top_keys == top).float().mean())
                case = f"{str(dtype)[6:]} {queries} x {keys} x {width}"
                # Errors of float32 are so small that the order of the sums decides.
                most = 3 if dtype == torch.float32 else 1.3
                ok = worst <= most and same and named > 0.98
                if not ok:
                    self.found["failed"].append(f"check {case}")
                facts = {"error / PyTorch's": worst, "same bits": same, "top keys": named}
                self.row("check", case, **facts)

    def gradients(self, call: Any, q: Any, k: Any, v: Any, given: Any) -> list[Any]:
        """Output and gradients of a call."""
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        output = call(*inputs)
        return [output.detach(), *self.torch.autograd.grad(output, inputs, given)]

    def sanitize(self) -> None:
        """Small calls of every kernel under compute-sanitizer."""
        program = shutil.which("compute-sanitizer")
        if program is None:
            print("  sanitize: there is no compute-sanitizer here", flush=True)
            return
        path = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        for tool in ("memcheck", "racecheck"):
            command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__]
            done = subprocess.run(
                [*command, "--small"],
                env=os.environ | path,
                capture_output=True,
                text=True,
                check=False,
            )
            told = done.stdout.strip().split("\n")[-1][:100]
            if "not supported" in done.stdout:
                told = "this GPU is not for it"
            elif done.returncode:
                self.found["failed"].append(f"{tool}: {told}")
                print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
            self.row("sanitize", tool, exit=done.returncode, told=told)

    # Fast

    def shapes(self) -> list[tuple[int, int, bool]]:
        """Widths, lengths, causal or not."""
        widths, lengths = self.options.widths, self.options.lengths
        return [(w, n, causal) for w in widths for n in lengths for causal in (False, True)]

    def speed(self, backward: bool) -> None:
        """Forward, or forward and backward, beside peers."""
        for width, length, causal in self.shapes():
            batch, heads = max(1, self.options.tokens // length), MODEL // width
            q, k, v = self.arrays(*[(batch, heads, length, width)] * 3)
            peers = [p for p in self.options.peers if p != "flex" or length in self.options.flex]
            calls = contenders(self.torch, causal, length, peers)
            if backward:
                given = self.torch.randn_like(q)
                train = self.gradients
                calls = {n: partial(train, call, q, k, v, given) for n, call in calls.items()}
            else:
                calls = {name: partial(call, q, k, v) for name, call in calls.items()}
            spent = self.times(calls)
            if "chumoku" not in spent:
                continue
            flop = 4 * batch * heads * length**2 * width * (0.5 if causal else 1)
            flop *= 3.5 if backward else 1
            rate = flop / spent["chumoku"] / 1e9
            facts = {"ms": spent["chumoku"], "TFLOP/s": rate, "of ceiling": rate / self.flops}
            facts |= {f"x {n}": t / spent["chumoku"] for n, t in spent.items() if n != "chumoku"}
            case = f"{width} x {length}{' causal' if causal else ''}"
            self.row("training" if backward else "forward", case, **facts)

    def seeing(self) -> None:
        """What facts cost, and what it costs to hold the weights instead."""
        import chumoku

        watch = chumoku.Watch
        facts, lists = watch(entropy=True, saturation=True), watch(top=8)
        length = min(8192, self.options.tokens)
        for width in self.options.widths:
            q, k, v = self.arrays(
                *[(self.options.tokens // length, MODEL // width, length, width)] * 3
            )
            ours: Any = partial(chumoku.attention, q, k, v, mask=chumoku.Causal())
            spent = self.times(
                {
                    "chumoku": ours,
                    "chumoku, facts": partial(ours, watch=facts),
                    "chumoku, top 8": partial(ours, watch=lists),
                    "chumoku, both": partial(ours, watch=facts | lists),
                    "weights held": partial(held, q, k, v),
                }
            )
            if "chumoku" not in spent:
                continue
            base = spent["chumoku"]
            found = {name: t / base for name, t in spent.items() if name != "chumoku"}
            both = spent.get("chumoku, both", base)
            if "weights held" in spent:
                found["held / both"] = spent["weights held"] / both
            self.row("seeing", f"{width} x {length} causal", ms=base, **found)

    def busy(self, call: Call, times: int = 20) -> float:
        """Milliseconds for which the GPU is busy in one call: a short one waits for the host."""
        torch = self.torch
        if self.device.type != "cuda":
            return self.once(call, 1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.once(call, times)
        spent = sum(event.self_device_time_total for event in profile.key_averages())
        return float(spent) / times / 1e3

    def decode(self) -> None:
        """One query over a cache, in GB/s beside a copy's, which reads and writes."""
        import chumoku

        for length in (16384, 65536, 131072) if self.device.type == "cuda" else (4096,):
            for batch in (1, 8):
                q, k, v = self.arrays((batch, 32, 1, 128), *[(batch, 8, length, 128)] * 2)
                read = 2 * k.numel() * k.element_size()
                sdpa = self.torch.nn.functional.scaled_dot_product_attention
                calls = {
                    "chumoku": partial(chumoku.attention, q, k, v),
                    "sdpa": partial(sdpa, q, k, v, enable_gqa=True),
                }
                spent = self.times(calls)
                if "chumoku" not in spent:
                    continue
                busy = {name: self.busy(calls[name]) for name in spent}
                rate = read / busy["chumoku"] / 1e6
                facts = {"us": 1e3 * spent["chumoku"], "GPU us": 1e3 * busy["chumoku"]}
                facts |= {"GB/s": rate, "of copy": rate / self.bytes}
                facts |= {"x sdpa": busy["sdpa"] / busy["chumoku"]} if "sdpa" in busy else {}
                self.row("decode", f"{batch} x 32/8 x {length}", **facts)


# Contenders


def math_of(q: Any, k: Any, v: Any) -> Any:
    """The definition."""
    return ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v


def sdpa_of(q: Any, k: Any, v: Any) -> Any:
    """PyTorch's choice."""
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def ours_of(q: Any, k: Any, v: Any) -> Any:
    """Ours."""
    import chumoku.torch

    return chumoku.torch.attention(q, k, v)


def held(q: Any, k: Any, v: Any) -> Any:
    """Output, entropy, saturation and the largest weights from a matrix of weights."""
    import torch

    rows = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    s = (q @ k.mT).float() * q.shape[-1] ** -0.5
    p = s.masked_fill(~rows, -torch.inf).softmax(-1)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1)
    return p.to(v.dtype) @ v, entropy, (p * p).sum(-1), p.topk(8)


def distance(got: Any, exact: Any) -> float:
    """Error in norm, relative."""
    return float((got.double() - exact).norm() / exact.norm())


def exact_top(q: Any, k: Any, top: int) -> Any:
    """Names of the largest weights."""
    return (q.double() @ k.double().mT).topk(top).indices


def contenders(torch: Any, causal: bool, length: int, names: list[str]) -> dict[str, Any]:
    """Calls of query, key and value, by name."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    import chumoku.torch

    mask = chumoku.Causal() if causal else None
    found: dict[str, Any] = {"chumoku": lambda q, k, v: chumoku.torch.attention(q, k, v, mask=mask)}
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def backend(which: Any) -> Any:
        def call(q: Any, k: Any, v: Any) -> Any:
            with sdpa_kernel(which):
                return sdpa(q, k, v, is_causal=causal)

        return call

    found["flash"] = backend(SDPBackend.FLASH_ATTENTION)
    found["cudnn"] = backend(SDPBackend.CUDNN_ATTENTION)
    if "flex" in names:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.reset()  # it compiles eight shapes, and no more
        compiled = torch.compile(flex_attention, dynamic=False)
        block = None
        if causal:
            block = create_block_mask(
                lambda _b, _h, i, j: i >= j, None, None, length, length, device="cuda"
            )
        found["flex"] = lambda q, k, v: compiled(q, k, v, block_mask=block)
    return {name: call for name, call in found.items() if name == "chumoku" or name in names}


def small() -> None:
    """A call of every kernel on few numbers, for compute-sanitizer."""
    import numpy as np
    import torch

    import chumoku
    import chumoku.torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mask = (chumoku.Causal() & chumoku.Lengths([60, 13])) | chumoku.Documents(np.arange(70) % 3)
    watch = chumoku.Watch(
        top=5,
        entropy=True,
        saturation=True,
        distance=True,
        received=True,
        groups=np.arange(70) % 4,
        picture=(5, 8),
    )
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (
            torch.randn((2, n, 70, 40), dtype=dtype, device=device, requires_grad=True)
            for n in (4, 2, 2)
        )
        bias = torch.randn((4, 1, 70), dtype=dtype, device=device, requires_grad=True)
        sinks = torch.ones(4, dtype=dtype, device=device, requires_grad=True)
        options = {"bias": bias, "sinks": sinks, "softcap": 9.0, "watch": watch}
        dropout = chumoku.Dropout(0.2, 3)
        output, seen = chumoku.torch.attention(q, k, v, mask=mask, dropout=dropout, **options)
        (output.sum() + seen.entropy.sum()).backward()
        with torch.no_grad():
            chumoku.weights(q, k, rows=[3, 69], mask=mask)
            long = torch.randn((2, 2, 2500, 40), dtype=dtype, device=device)
            chumoku.attention(q[:, :, :1], long, long, watch=chumoku.Watch(top=40))
    print("small calls done")


def table(bench: Bench) -> None:
    """The rows once more, and what failed."""
    print("\n" + ", ".join(f"{name} {value}" for name, value in bench.found["machine"].items()))
    for row in bench.found["rows"]:
        facts = [(k, v) for k, v in row.items() if k not in ("part", "case")]
        shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts)
        print(f"{row['part']:<9} {row['case']:<32} {shown}")
    print("failed: " + ("; ".join(bench.found["failed"]) or "nothing"))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line of this part."""

    def listed(kind: Any) -> Any:
        return lambda text: [kind(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", type=listed(str), default=list(PARTS))
    parser.add_argument("--widths", type=listed(int), default=[64, 128, 256])
    parser.add_argument("--lengths", type=listed(int), default=[512, 2048, 8192, 32768])
    parser.add_argument("--peers", type=listed(str), default=["flash", "cudnn", "flex"])
    parser.add_argument("--flex", type=listed(int), default=[8192], help="its lengths: it compiles")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="in a batch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return options


def main(arguments: list[str]) -> int:
    """Everything that is asked for; 1 when something of ours failed."""
    options = parse(arguments)
    built()
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("TRITON_INTERPRET") != "1":
            print(
                "PyTorch finds no CUDA GPU here; with TRITON_INTERPRET=1 the script can be tried."
            )
            return 1
        from chumoku import arrays

        arrays.lies_on_gpu = lambda _: True
    if options.small:
        small()
        return 0
    bench = Bench(options)
    bench.ceilings()
    parts: dict[str, Callable[[], None]] = {
        "check": bench.check,
        "sanitize": bench.sanitize,
        "forward": lambda: bench.speed(False),
        "training": lambda: bench.speed(True),
        "seeing": bench.seeing,
        "decode": bench.decode,
    }
    try:
        for part in options.parts:
            try:
                parts[part]()
            except Exception as error:  # what is known so far is told all the same
                bench.failed(part, error)
    finally:
        table(bench)
        if options.save:
            path = HERE / "results" / f"{options.save}.json"
            path.write_text(json.dumps(bench.found, indent=1) + "\n", encoding="utf-8")
    return 1 if bench.found["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
