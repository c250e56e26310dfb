"""mdprune: exact channel removal for networks that serve several domains from shared weights."""

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .domain import Domain, Mask
from .engines import Engine, load
from .errors import (
    BackendUnavailableError,
    BudgetError,
    BundleError,
    CheckpointError,
    Error,
    UnsupportedGraphError,
    UsageError,
    VerificationError,
)
from .extend import DomainChange, add_domain, drop_domain
from .pipeline import compile
from .report import CompileReport, DomainReport
from .verify import reference

__all__ = [
    "BackendUnavailableError",
    "BudgetError",
    "BundleError",
    "Checkpoint",
    "CheckpointError",
    "CompileReport",
    "Domain",
    "DomainChange",
    "DomainReport",
    "Engine",
    "Error",
    "Mask",
    "UnsupportedGraphError",
    "UsageError",
    "VerificationError",
    "add_domain",
    "compile",
    "drop_domain",
    "load",
    "load_checkpoint",
    "reference",
    "save_checkpoint",
]
