"""The claims ledger: statements of the papers that can be executed, each with its evidence.

Every module of this folder that enters claims is imported here, so that a paper takes its own file and nothing else.
"""

import importlib
import pkgutil

from biases.claims.ledger import CLAIMS, VERDICTS, Claim, Evidence, Row, claim, claims_of, get, run_claims

__all__ = ["CLAIMS", "VERDICTS", "Claim", "Evidence", "Row", "claim", "claims_of", "get", "run_claims"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    # The view needs rich, which is optional.
    if _module.name != f"{__name__}.show":
        importlib.import_module(_module.name)
