"""The task head: an explicit value, trained and saved with the adapter. `spec.py` is torch-free."""

from autopeft.heads.spec import Head

__all__ = ["Head"]
