"""MultiHeadAttention: four matrices around attention(), and what each head did between them."""

from chumoku.multihead.cache import Cache
from chumoku.multihead.module import MultiHeadAttention, Trace

__all__ = ["Cache", "MultiHeadAttention", "Trace"]
