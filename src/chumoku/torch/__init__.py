"""PyTorch: attention() that trains, compiles and exports. It is imported by name."""

from chumoku.torch.attention import attention
from chumoku.torch.multihead import MultiheadAttention, replace, restore
from chumoku.torch.record import recording
from chumoku.torch.takeover import use

__all__ = ["MultiheadAttention", "attention", "recording", "replace", "restore", "use"]
