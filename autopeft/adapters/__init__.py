"""The trained artefact: save, load, attach, predict."""

from autopeft.adapters.adapter import Adapter, Predictions, build_head, load

__all__ = ["Adapter", "Predictions", "build_head", "load"]
