"""chumoku: exact attention that shows where it looks."""

# First, so that a subinterpreter hears the native module's refusal, and not NumPy's.
from chumoku import _native as _native
from chumoku.attention import Gradients, attention, attention_backward, weights
from chumoku.dropout import Dropout
from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.mask import Causal, Cells, Chunks, Custom, Documents, Lengths, Mask, Prefix, Window
from chumoku.merge import merge, with_sinks
from chumoku.multihead import Cache, MultiHeadAttention
from chumoku.record import Recording, label, recording
from chumoku.statistics import Statistics, Watch
from chumoku.steps import Steps, steps
from chumoku.threads import get_threads, set_threads

__all__ = [
    "Cache",
    "Causal",
    "Cells",
    "ChumokuError",
    "Chunks",
    "Custom",
    "Documents",
    "Dropout",
    "Gradients",
    "InvalidArgumentError",
    "InvalidTypeError",
    "Lengths",
    "Mask",
    "MultiHeadAttention",
    "Prefix",
    "Recording",
    "Statistics",
    "Steps",
    "UnavailableError",
    "Watch",
    "Window",
    "attention",
    "attention_backward",
    "get_threads",
    "label",
    "merge",
    "recording",
    "set_threads",
    "steps",
    "weights",
    "with_sinks",
]
__version__ = "0.1.0"
