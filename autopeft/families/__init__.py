"""Where modules can be inserted, as data: one declarative map per family of backbones. Torch-free."""

from autopeft.families import bert, distilbert, electra
from autopeft.families.base import FAMILIES, Family, FfnSeam, StockHead, family_of, register_family
from autopeft.families.describe import DEMO_SHA256, fingerprint, locate, read_config, shape_of

__all__ = [
    "DEMO_SHA256",
    "FAMILIES",
    "Family",
    "FfnSeam",
    "StockHead",
    "bert",
    "distilbert",
    "electra",
    "family_of",
    "fingerprint",
    "locate",
    "read_config",
    "register_family",
    "shape_of",
]
