"""Budget-adaptive video transformers: train once, deploy at any budget."""

__version__ = "0.1.0"
