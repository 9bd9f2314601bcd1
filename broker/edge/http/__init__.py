"""The HTTP door: what the ecosystem reads."""
