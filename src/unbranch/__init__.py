"""unbranch: train with branches, ship without them. Structural re-parameterization, exact or refused."""

from unbranch import blocks, detect, models
from unbranch.affine import Affine, NotLinear
from unbranch.checkpoints import load
from unbranch.expand import calibrate, expand, expand_
from unbranch.fold.certificate import Certificate
from unbranch.fold.report import Report
from unbranch.verbs import explain, reparameterize, reparameterize_, verify

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Certificate",
    "NotLinear",
    "Report",
    "__version__",
    "blocks",
    "calibrate",
    "detect",
    "expand",
    "expand_",
    "explain",
    "load",
    "models",
    "reparameterize",
    "reparameterize_",
    "verify",
]
