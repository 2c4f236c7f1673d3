"""Who is timed: chumoku and its peers, each as a function that makes, of a case, a call.

A peer gets the cheapest form of the case that it knows: its own causal flag, one mask for all
batch entries. What it cannot express raises Unfit with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.workloads import Array, Case


class Unfit(Exception):
    """The peer does not do the case; the message says why."""


class Timed(NamedTuple):
    """What is timed, and how its result becomes a NumPy array (batch, heads, queries, width)."""

    run: Callable[[], Any]
    output: Callable[[Any], Array]


def _first(result: Any) -> Array:
    """The output of a call that may be watched."""
    return np.asarray(result[0] if isinstance(result, tuple) else result)


# chumoku


def _chumoku(**watch: Any) -> Callable[[Case, int], Timed]:
    def make(case: Case, threads: int) -> Timed:
        import chumoku

        chumoku.set_threads(threads)
        query, key, value = case.arrays()
        asked = dict(watch)
        if asked.get("groups"):
            asked["groups"] = np.arange(case.keys) % 4
        everything = {"mask": case.mask_value(), "bias": case.bias_array()}
        given: dict[str, Any] = {name: one for name, one in everything.items() if one is not None}
        if asked:
            given["watch"] = chumoku.Watch(**asked)
        call = chumoku.attention
        return Timed(lambda: call(query, key, value, **given), _first)

    return make


def _chumoku_tensors(case: Case, threads: int) -> Timed:
    """From tensors to a tensor."""
    import chumoku

    torch, query, key, value = _tensors(case, threads)
    chumoku.set_threads(threads)
    given: dict[str, Any] = {"mask": case.mask_value()} if case.mask else {}
    if case.bias:
        given["bias"] = _tensor(torch, case.bias_array())
    return Timed(lambda: chumoku.attention(query, key, value, **given), _plain)


def _module_input(case: Case) -> Array:
    """What a module of the case's heads gets: the query with its heads joined."""
    if not case.alike:
        raise Unfit("a case of modules alone")
    query = case.arrays()[0]
    return np.ascontiguousarray(query.swapaxes(1, 2)).reshape(case.batch, case.queries, -1)


def _heads_apart(case: Case, joined: Array) -> Array:
    apart = (case.batch, case.queries, case.heads, case.width)
    return joined.reshape(apart).swapaxes(1, 2)


def _chumoku_module(case: Case, threads: int) -> Timed:
    """Four matrices around the attention; they are identities, so that the result is known."""
    import chumoku

    chumoku.set_threads(threads)
    x = _module_input(case)
    matrices = ("query_matrix", "key_matrix", "value_matrix", "output_matrix")
    biases = ("query_bias", "key_bias", "value_bias", "output_bias")
    width = x.shape[-1]
    parameters = {name: np.eye(width, dtype=np.float32) for name in matrices}
    parameters |= {name: np.zeros(width, np.float32) for name in biases}
    module = chumoku.MultiHeadAttention.from_parameters(parameters, case.heads)
    return Timed(lambda: module(x), lambda out: _heads_apart(case, out))


# PyTorch


def _torch_module(case: Case, threads: int) -> Timed:
    """Its own module on its fast path."""
    x = _module_input(case)
    torch, *_ = _tensors(case, threads)
    width = x.shape[-1]
    module = torch.nn.MultiheadAttention(width, case.heads, batch_first=True).eval()
    state = {"in_proj_weight": torch.eye(width).repeat(3, 1), "out_proj.weight": torch.eye(width)}
    state |= {"in_proj_bias": torch.zeros(3 * width), "out_proj.bias": torch.zeros(width)}
    module.load_state_dict(state)
    given = torch.from_numpy(x)

    def run() -> Any:
        with torch.inference_mode():
            return module(given, given, given, need_weights=False)[0]

    return Timed(run, lambda out: _heads_apart(case, _plain(out)))


def _tensor(torch: Any, array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _tensors(case: Case, threads: int) -> tuple[Any, ...]:
    import torch

    torch.set_num_threads(threads)
    return (torch, *(_tensor(torch, array) for array in case.arrays()))


def _plain(result: Any) -> Array:
    """A tensor, or the first of several, as float64 numbers."""
    first = result[0] if isinstance(result, tuple) else result
    return np.asarray(first.double().numpy())


def _torch_mask(torch: Any, case: Case) -> Any:
    """attn_mask of the case, or None; causal cases have a flag of their own."""
    cells = None if case.mask in ("", "causal") else torch.from_numpy(case.cells())
    if not case.bias:
        return cells
    bias = _tensor(torch, case.bias_array())[None]
    return bias if cells is None else bias.masked_fill(~cells, -torch.inf)


def _torch(backend: str) -> Callable[[Case, int], Timed]:
    def make(case: Case, threads: int) -> Timed:
        torch, query, key, value = _tensors(case, threads)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        mask = _torch_mask(torch, case)
        given = {"is_causal": case.mask == "causal", "enable_gqa": case.heads != case.kv_heads}
        call = torch.nn.functional.scaled_dot_product_attention
        if not backend:
            return Timed(lambda: call(query, key, value, attn_mask=mask, **given), _plain)

        def run() -> Any:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return call(query, key, value, attn_mask=mask, **given)

        return Timed(run, _plain)

    return make


def _training(ours: bool) -> Callable[[Case, int], Timed]:
    """Forward and backward: the gradients of query, key and value, and of the bias if there is."""

    def make(case: Case, threads: int) -> Timed:
        if case.alike or case.queries == 1:
            raise Unfit("nothing that is trained so")
        torch, query, key, value = _tensors(case, threads)
        arrays = [x.requires_grad_() for x in (query, key, value)]
        above = torch.randn(case.batch, case.heads, case.queries, case.width).to(query.dtype)
        bias = _tensor(torch, case.bias_array())[None].requires_grad_() if case.bias else None
        leaves = arrays if bias is None else [*arrays, bias]
        if ours:
            import chumoku.torch

            chumoku.set_threads(threads)
            given: dict[str, Any] = {"mask": case.mask_value(), "bias": bias}
            call = chumoku.torch.attention
        else:
            mask = _torch_mask(torch, case) if bias is None else bias
            given = {"is_causal": case.mask == "causal", "enable_gqa": case.heads != case.kv_heads}
            given["attn_mask"] = mask
            call = torch.nn.functional.scaled_dot_product_attention

        def run() -> Any:
            output = call(*arrays, **given)
            return output.detach(), *torch.autograd.grad(output, leaves, above)

        return Timed(run, _plain)

    return make


def _torch_folded(case: Case, threads: int) -> Timed:
    """Grouped heads folded into the queries by hand, where that is the same calculation."""
    if case.heads == case.kv_heads or case.queries != 1:
        raise Unfit("nothing to fold")
    torch, query, key, value = _tensors(case, threads)
    call = torch.nn.functional.scaled_dot_product_attention
    folded = query.reshape(case.batch, case.kv_heads, -1, case.width)
    return Timed(lambda: call(folded, key, value).reshape(query.shape), _plain)


def _torch_seeing(facts: bool) -> Callable[[Case, int], Timed]:
    """The weights materialised, and with `facts` what chumoku sees taken from them."""

    def make(case: Case, threads: int) -> Timed:
        torch, query, key, value = _tensors(case, threads)
        cells = None if case.mask == "" else torch.from_numpy(case.cells())
        bias = _tensor(torch, case.bias_array()) if case.bias else None
        group, scale = case.heads // case.kv_heads, case.width**-0.5

        def run() -> Any:
            k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
            scores = query @ k.transpose(-1, -2) * scale
            if bias is not None:
                scores += bias
            if cells is not None:
                scores.masked_fill_(~cells, -torch.inf)
            weights = torch.softmax(scores, dim=-1)
            output = weights @ v
            if not facts:
                return output, weights
            entropy = torch.special.entr(weights).sum(-1)
            top = torch.topk(weights, min(8, case.keys), dim=-1)
            return output, top, entropy, weights.square().sum(-1), weights.sum(-2)

        return Timed(run, _plain)

    return make


# ONNX Runtime, OpenVINO, JAX, NumPy


def _onnx(model: Any, inputs: dict[str, Array], threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, inputs)[0]


def _onnx_model(node: Any, inputs: dict[str, Array], shape: list[int]) -> Any:
    import onnx

    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in inputs.items()}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "attention",
        [info(name, kinds[name], array.shape) for name, array in inputs.items()],
        [info("out", kinds["query"], shape)],
    )
    domains = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=domains)
    model.ir_version = 10
    return model


def _onnx_attention(case: Case, threads: int) -> Timed:
    """The operator of ONNX, version 23."""
    from onnx import helper

    if case.dtype == "bfloat16":
        raise Unfit("no bfloat16 from NumPy")
    inputs = dict(zip(("query", "key", "value"), case.arrays(), strict=True))
    if case.bias:
        inputs["mask"] = np.ascontiguousarray(case.bias_array()[None])
    elif case.mask not in ("", "causal"):
        inputs["mask"] = case.cells()
    node = helper.make_node(
        "Attention", list(inputs), ["out"], is_causal=int(case.mask == "causal")
    )
    model = _onnx_model(node, inputs, list(inputs["query"].shape))
    return Timed(_onnx(model, inputs, threads), _first)


def _onnx_multihead(case: Case, threads: int) -> Timed:
    """ONNX Runtime's own operator, whose queries have the heads inside."""
    from onnx import helper

    if case.dtype != "float32" or case.mask not in ("", "causal") or case.heads != case.kv_heads:
        raise Unfit("float32 without masks and groups alone")
    query, key, value = case.arrays()
    joined = np.ascontiguousarray(query.swapaxes(1, 2)).reshape(case.batch, case.queries, -1)
    inputs = {"query": joined, "key": key, "value": value}
    names = list(inputs)
    if case.bias:
        inputs["bias"] = np.ascontiguousarray(case.bias_array()[None])
        names += ["", "", "bias"]
    node = helper.make_node(
        "MultiHeadAttention",
        names,
        ["out"],
        domain="com.microsoft",
        num_heads=case.heads,
        unidirectional=int(case.mask == "causal"),
    )
    run = _onnx(_onnx_model(node, inputs, list(joined.shape)), inputs, threads)
    return Timed(run, lambda out: _heads_apart(case, out))


def _openvino(case: Case, threads: int) -> Timed:
    import openvino

    if case.dtype not in ("float32", "float16") or case.heads != case.kv_heads:
        raise Unfit("float32 and float16 without groups alone")
    kinds = openvino.opset13
    inputs = dict(zip(("query", "key", "value"), case.arrays(), strict=True))
    if case.bias:
        inputs["mask"] = np.ascontiguousarray(case.bias_array()[None])
    elif case.mask not in ("", "causal"):
        inputs["mask"] = case.cells()
    nodes = [kinds.parameter(a.shape, a.dtype, name=name) for name, a in inputs.items()]
    out = kinds.scaled_dot_product_attention(*nodes, causal=case.mask == "causal")
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": case.dtype[0] + "32"}
    compiled = openvino.compile_model(openvino.Model([out], nodes, "attention"), "CPU", settings)
    request, given = compiled.create_infer_request(), list(inputs.values())
    return Timed(lambda: request.infer(given, share_inputs=True, share_outputs=True)[0], _first)


def _jax(case: Case, threads: int) -> Timed:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax

    if case.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    inputs = [jax.numpy.asarray(array.swapaxes(1, 2)) for array in case.arrays()]
    given: dict[str, Any] = {"is_causal": case.mask == "causal"}
    if case.mask not in ("", "causal"):
        given["mask"] = jax.numpy.asarray(case.cells())
    if case.bias:
        given["bias"] = jax.numpy.asarray(case.bias_array()[None])
    call = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **given))
    return Timed(
        lambda: call(*inputs).block_until_ready(),
        lambda out: np.asarray(out.astype("float32")).swapaxes(1, 2),
    )


def _numpy(case: Case, _: int) -> Timed:
    """What one would write."""
    if case.size == 2:
        raise Unfit("no matrix product of 16-bit numbers")
    query, key, value = case.arrays()
    group, bias, cells = case.heads // case.kv_heads, case.bias_array(), case.cells()

    def run() -> Array:
        k, v = (np.repeat(x, group, axis=1) if group > 1 else x for x in (key, value))
        scores = query @ k.swapaxes(-1, -2) * query.dtype.type(case.width**-0.5)
        if bias is not None:
            scores += bias
        if cells is not None:
            scores = np.where(cells, scores, -np.inf)
        np.exp(scores - scores.max(-1, keepdims=True), out=scores)
        scores /= scores.sum(-1, keepdims=True)
        return np.asarray(scores @ v)

    return Timed(run, _first)


FACTS = {"entropy": True, "saturation": True}
EVERYTHING = {**FACTS, "top": 8, "distance": True, "received": True, "groups": True}

CONTENDERS: dict[str, Callable[[Case, int], Timed]] = {
    "chumoku": _chumoku(),
    "chumoku facts": _chumoku(**FACTS),
    "chumoku top 8": _chumoku(**FACTS, top=8),
    "chumoku received": _chumoku(received=True),
    "chumoku picture": _chumoku(picture=(64, 64)),
    "chumoku all": _chumoku(**EVERYTHING, picture=(64, 64)),
    "chumoku tensors": _chumoku_tensors,
    "chumoku module": _chumoku_module,
    "chumoku training": _training(ours=True),
    "torch training": _training(ours=False),
    "torch": _torch(""),
    "torch math": _torch("MATH"),
    "torch folded": _torch_folded,
    "torch module": _torch_module,
    "torch weights": _torch_seeing(facts=False),
    "torch seeing": _torch_seeing(facts=True),
    "onnxruntime": _onnx_attention,
    "onnxruntime mha": _onnx_multihead,
    "openvino": _openvino,
    "jax": _jax,
    "numpy": _numpy,
}
