"""Models of transformers on chumoku's attention. It is imported by name.

Importing it registers attn_implementation="chumoku".
"""

from transformers import AttentionInterface, AttentionMaskInterface

from chumoku.huggingface.bias import IMPLEMENTATION
from chumoku.huggingface.function import attention_function
from chumoku.huggingface.masks import LazyMask, mask_function
from chumoku.huggingface.views import AttentionView
from chumoku.huggingface.watching import watch

AttentionInterface.register(IMPLEMENTATION, attention_function)
AttentionMaskInterface.register(IMPLEMENTATION, mask_function)

__all__ = ["AttentionView", "LazyMask", "attention_function", "mask_function", "watch"]
