"""Train one configuration: tokenised batches, one flat loop, the frozen probe, measured cost."""

from autopeft.training.batches import Tokens, tokenise
from autopeft.training.loop import EpochDone, StepDone, predict, train
from autopeft.training.sources import Source, Texts

__all__ = ["EpochDone", "Source", "StepDone", "Texts", "Tokens", "predict", "tokenise", "train"]
