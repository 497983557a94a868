"""See `spec.py` for what it is and `layer.py` for how it computes."""
