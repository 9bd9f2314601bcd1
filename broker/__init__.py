"""Short-lived, revocable credentials for restricted AI models."""

__version__ = "0.1.0"
