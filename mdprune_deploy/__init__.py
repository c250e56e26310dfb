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
    "DomainReport",
    "Engine",
    "Error",
    "Mask",
    "UnsupportedGraphError",
    "UsageError",
    "VerificationError",
    "compile",
    "load",
    "load_checkpoint",
    "reference",
    "save_checkpoint",
]
