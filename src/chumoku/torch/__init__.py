"""PyTorch: attention() that trains, compiles and exports. It is imported by name."""

from chumoku.torch.attention import attention

__all__ = ["attention"]
