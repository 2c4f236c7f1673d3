"""BERT encoders on NumPy around our own attention: the default model, and any BERT folder."""

from chumoku.models.default import DEFAULT_NAME, default_model
from chumoku.models.encoder import Encoder, Encoding, Layer, Norm
from chumoku.models.folder import load_model

__all__ = ["DEFAULT_NAME", "Encoder", "Encoding", "Layer", "Norm", "default_model", "load_model"]
