"""Train one configuration: tokenised batches, one flat loop, the frozen probe, measured cost."""

from autopeft.training.batches import Tokens, tokenise
from autopeft.training.loop import EpochDone, StepDone, predict, train

__all__ = ["EpochDone", "StepDone", "Tokens", "predict", "tokenise", "train"]
