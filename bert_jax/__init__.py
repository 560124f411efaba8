"""BERT-family encoders, pretrained in JAX on any number of devices."""

__version__ = "0.1.0"
