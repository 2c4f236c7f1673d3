"""attention(), any block of its weights, and its gradients. The only dispatcher."""

from chumoku.attention.backward import Gradients, attention_backward
from chumoku.attention.forward import attention, weights

__all__ = ["Gradients", "attention", "attention_backward", "weights"]
