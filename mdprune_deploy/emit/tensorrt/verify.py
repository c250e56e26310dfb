"""Holds the emitted models against the reference, by the evaluator that needs no TensorRT.

float32: all inputs, 1e-5, or the compile stops. float16: the inputs of ordinary size, 5e-3; a model
that is farther off leaves the bundle, which the report says, because the range of float16 is the
network's business and not an error of the compile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...manifest import TensorrtFiles, TensorrtModel
from ...report import Missing
from ...verify import ARTIFACT_TOLERANCE, HALF_TOLERANCE, Case, Error, check, largest_error
from ..native.target import FOLDER as NATIVE
from .evaluate import runner

_NOT_IN_HALF = "large"
"""The case whose values may leave the range of float16."""


def model_error(root: Path, model: TensorrtModel, found: Sequence[Case], batched: bool) -> Error:
    """Returns the error of one emitted model.

    Args:
        root: The bundle's directory.
        model: One of its models.
        found: Inputs and what is expected.
        batched: Whether the cases may be run as one batch.

    Raises:
        BundleError: The model or a weight file cannot be read.
    """
    if model.precision == "fp16":
        found = in_half(found)
    run = runner(root / model.file, root / NATIVE, model.precision)
    return largest_error(found, run, batched=batched)


def in_half(found: Sequence[Case]) -> list[Case]:
    """Returns the cases whose values stay in the range of float16."""
    return [case for case in found if case.name != _NOT_IN_HALF]


def tolerance(model: TensorrtModel) -> float:
    """Returns the largest error that a model may have."""
    return HALF_TOLERANCE if model.precision == "fp16" else ARTIFACT_TOLERANCE


def verified(
    root: Path, domain: str, files: TensorrtFiles, found: Sequence[Case], batched: bool
) -> tuple[TensorrtFiles, Error, list[Missing]]:
    """Checks a domain's models; returns those that hold, the float32 error, and what is missing.

    Raises:
        VerificationError: A float32 model differs from the reference.
    """
    worst = Error()
    kept: list[TensorrtModel] = []
    missing: list[Missing] = []
    for model in files.models:
        error = model_error(root, model, found, batched)
        if model.precision == "fp16" and error.relative > HALF_TOLERANCE:
            (root / model.file).unlink()
            reason = (
                f"domain {domain!r}: in float16 its relative error is {error.relative:.3g} on the "
                f"{error.case} input, allowed {HALF_TOLERANCE:g}"
            )
            missing.append(Missing(model.file, reason))
            continue
        check(domain, model.file, error, tolerance(model), None)
        kept.append(dataclasses.replace(model, max_rel_error=error.relative))
        if model.precision == "fp32":
            worst = max(worst, error, key=lambda e: e.relative)
    return dataclasses.replace(files, models=tuple(kept)), worst, missing
