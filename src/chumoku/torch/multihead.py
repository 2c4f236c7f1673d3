"""torch.nn.MultiheadAttention with its parameters, masks and results, on chumoku."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from chumoku.attention import weights
from chumoku.errors import InvalidArgumentError
from chumoku.mask import Causal
from chumoku.statistics import Watch
from chumoku.torch.attention import attention
from chumoku.torch.composed import composed_weights
from chumoku.torch.forms import drawn


class MultiheadAttention(torch.nn.MultiheadAttention):
    """A drop-in for torch.nn.MultiheadAttention.

    Constructor, parameters, state_dict, masks (True means may NOT look) and results are those of
    PyTorch's module. Beyond it, a row in which everything is masked gives 0 in place of NaN, and
    `watch=` gives Statistics in place of the matrix of weights, in memory that grows with the
    length. `replace` makes one of each module of a model.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        watch: Watch | None = None,
    ) -> Any:
        """As torch.nn.MultiheadAttention.forward, and watch.

        Parameters
        ----------
        query, key, value : Tensor
            (length, width), (length, batch, width), or (batch, length, width) with batch_first.
        key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            As PyTorch's. A boolean mask's True hides; floats are added.
        watch : Watch, optional
            In place of the matrix of weights the second result is Statistics, with the axes
            (batch, heads, queries), or (heads, queries) without a batch.

        Returns
        -------
        output : Tensor
            Shaped like the query.
        weights : Tensor, Statistics or None
            (batch, queries, keys), the mean over the heads, or (batch, heads, queries, keys). In
            training with dropout they are those that were used.
        """
        batched = query.dim() == 3
        if is_causal and attn_mask is None:
            raise InvalidArgumentError(
                "is_causal",
                got="True without attn_mask",
                expected="attn_mask beside it, for it is a hint",
                cure="torch.nn.Transformer.generate_square_subsequent_mask(length) makes one.",
            )
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
            if attn_mask is not None and attn_mask.dim() == 3:
                attn_mask = attn_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        hint = is_causal and key_padding_mask is None and not need_weights
        options = self._masks(q, k, None if hint else attn_mask, key_padding_mask)
        if hint:
            options["mask"] = Causal(0)
        dropout = drawn(self.dropout, number=need_weights) if self.training else None
        found = attention(q, k, v, **options, dropout=dropout, watch=watch)
        output, seen = found if watch is not None else (found, None)
        output = self.out_proj(output.transpose(-3, -2).flatten(-2))
        if seen is None and need_weights:
            seen = _weights(q, k, options, dropout)
            seen = seen.mean(dim=1) if average_attn_weights else seen
        if not batched:
            output = output.squeeze(0)
            seen = _first(seen)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, seen

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value of each head: (batch, heads, length, width of a head)."""
        if self._qkv_same_embed_dim:
            matrices = self.in_proj_weight.chunk(3)
        else:
            matrices = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self._qkv_same_embed_dim and query is key is value:
            together = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
            q, k, v = together.chunk(3, dim=-1)
        else:
            given = zip((query, key, value), matrices, biases, strict=True)
            q, k, v = (functional.linear(x, matrix, bias) for x, matrix, bias in given)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], 1, -1)], dim=1)
        q, k, v = (x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = (functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return q, k, v

    def _masks(
        self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None
    ) -> dict[str, Any]:
        """PyTorch's masks, in which True hides, as mask= and bias=."""
        batch, heads, queries, _ = q.shape
        hidden: list[Tensor] = []
        added: list[Tensor] = []
        if padding is not None:
            (hidden if padding.dtype == torch.bool else added).append(padding[:, None, None, :])
        if attn_mask is not None:
            mask = attn_mask
            if mask.dim() == 3:
                mask = mask.reshape(-1, heads, *mask.shape[-2:])
            (hidden if attn_mask.dtype == torch.bool else added).append(mask)
        # Keys that the module itself adds are seen by all.
        own = (self.bias_k is not None) + self.add_zero_attn
        keys = k.shape[-2] - own
        for name, given, sizes in (
            ("attn_mask", attn_mask, (queries, keys)),
            ("key_padding_mask", padding, (batch, keys)),
        ):
            if given is not None and tuple(given.shape[-2:]) != sizes:
                raise InvalidArgumentError(
                    name, f"shape {tuple(given.shape)}", f"last axes {sizes}, as the inputs have"
                )
        options: dict[str, Any] = {}
        if hidden:
            shown = ~hidden[0] if len(hidden) == 1 else ~(hidden[0] | hidden[1])
            options["mask"] = functional.pad(shown, (0, own), value=True) if own else shown
        if added:
            bias = added[0] if len(added) == 1 else added[0] + added[1]
            options["bias"] = functional.pad(bias, (0, own)).to(q.dtype)
        return options


def _first(seen: Any) -> Any:
    """Without the axis of the batch."""
    if seen is None or isinstance(seen, Tensor):
        return None if seen is None else seen.squeeze(0)
    facts = {
        name: tuple(x[0] for x in fact) if isinstance(fact, tuple) else fact[0]
        for name, fact in seen.facts().items()
    }
    return type(seen)(**facts)


def _weights(q: Tensor, k: Tensor, options: dict[str, Any], dropout: Any) -> Tensor:
    """The matrix, dropped where dropout dropped."""
    apply: Any = _Matrix.apply
    matrix: Tensor = apply(q, k, options.get("bias"), options.get("mask")).to(q.dtype)
    if dropout is None:
        return matrix
    kept = dropout.kept(
        tuple(q.shape[:1]), q.shape[1], *(torch.arange(x.shape[-2]).numpy() for x in (q, k))
    )
    dropped: Tensor = matrix * torch.from_numpy(kept).to(q.device) / (1 - dropout.rate)
    return dropped


class _Matrix(torch.autograd.Function):
    """The whole matrix of weights by the kernel; its gradient by PyTorch's own operations."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, bias: Tensor | None, mask: Any) -> Tensor:
        ctx.save_for_backward(q, k, bias)
        ctx.mask = mask
        given = None if bias is None else bias.detach()
        matrix: Tensor = weights(q.detach(), k.detach(), bias=given, mask=mask)
        return matrix

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        q, k, bias = ctx.saved_tensors
        leaves = [x.detach().requires_grad_() for x in (q, k, bias) if x is not None]
        with torch.enable_grad():
            own = leaves[2] if len(leaves) > 2 else None
            matrix = composed_weights(leaves[0], leaves[1], own, ctx.mask)
            found = torch.autograd.grad(matrix, leaves, gradient.to(matrix.dtype))
        return *found, *(None,) * (4 - len(found))


def replace(model: torch.nn.Module) -> list[str]:
    """Make every torch.nn.MultiheadAttention of a model chumoku's, in place.

    Parameters, hooks and state_dict stay the same objects. PyTorch's encoder layers do not call
    their attention in eval mode without gradients, unless
    torch.backends.mha.set_fastpath_enabled(False) is set.

    Parameters
    ----------
    model : Module

    Returns
    -------
    list of str
        The names of the modules that were changed; `restore` changes them back.
    """
    return _turn(model, torch.nn.MultiheadAttention, MultiheadAttention)


def restore(model: torch.nn.Module) -> list[str]:
    """Make the modules that `replace` changed PyTorch's again; their names."""
    return _turn(model, MultiheadAttention, torch.nn.MultiheadAttention)


def _turn(model: torch.nn.Module, old: type, new: type) -> list[str]:
    names = []
    for name, module in model.named_modules():
        if type(module) is old:
            module.__class__ = new
            names.append(name)
    return names
