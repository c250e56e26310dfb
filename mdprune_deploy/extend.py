"""Adds, replaces and drops a domain of a bundle, without rewriting what the others use.

The bundle's directory is built anew as a hidden sibling and takes the old one's place by a rename,
as a compile does. Files that stay are the same files in both (hard links, or copies where links are
impossible), so what has a bundle open goes on with what it opened. A domain that is added takes
what the native weight files hold already and brings one more file with what they lack.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from .bundle import Bundle, BundleWriter, read_bundle
from .checkpoint import Checkpoint, load_checkpoint
from .emit.native.plan import Place, read_plan
from .emit.native.record import NAME as RECORD
from .emit.native.record import Record, read_record, within, without, write_record
from .emit.native.shared import weight_layouts
from .emit.native.target import FOLDER as NATIVE
from .emit.native.target import INDEX, write_index
from .emit.onnx_target import FOLDER as ONNX
from .emit.onnx_target import file_stems
from .errors import BundleError, UsageError
from .manifest import DomainModel
from .masks import fit_budget
from .passes.figures import union_and_intersection
from .pipeline import Onto, Progress, Run, versions
from .report import CompileReport, DomainReport

Span = tuple[int, int]
_REWRITTEN = frozenset({f"{NATIVE}/{INDEX}", f"{NATIVE}/{RECORD}"})


@dataclass(frozen=True)
class DomainChange:
    """What a change of a bundle took.

    Attributes:
        domain: The domain.
        action: `"added"`, `"replaced"` or `"dropped"`.
        bytes_written: Size of the files that are the domain's alone.
        bytes_weights: Size of the native weight file among them.
        bytes_reused: Bytes of native weights that the domain reads from files that were there.
        bytes_removed: Size of the files that are there no more.
        figures: The domain's figures; None of one that was dropped.
        seconds: Wall-clock time.
    """

    domain: str
    action: str
    bytes_written: int
    bytes_weights: int
    bytes_reused: int
    bytes_removed: int
    figures: DomainReport | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns the change as plain JSON types."""
        return {"version": 1, **dataclasses.asdict(self)}


def add_domain(
    bundle_dir: str | os.PathLike[str],
    checkpoint_or_path: Checkpoint | str | os.PathLike[str],
    domain: str | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> DomainChange:
    """Adds a domain to a bundle, or replaces one.

    The budget that the bundle records holds for the domain too.

    Args:
        bundle_dir: The bundle; it has the native target.
        checkpoint_or_path: A checkpoint, or the file of one, with the bundle's backbone.
        domain: One of the checkpoint's domains; None for its only one.
        replace: Replace a domain of that name.
        progress: Told of every stage.

    Raises:
        BundleError: There is no bundle, or a damaged one.
        CheckpointError: The checkpoint is unreadable, or has another backbone.
        BudgetError: The domain's masks do not fit the budget.
        UnsupportedGraphError: The domain's graph holds something that cannot be compiled exactly.
        VerificationError: What was compiled differs from the reference.
        UsageError: An argument is wrong, or the bundle cannot be written.
    """
    start = time.perf_counter()
    bundle = _read(bundle_dir)
    checkpoint = (
        checkpoint_or_path
        if isinstance(checkpoint_or_path, Checkpoint)
        else load_checkpoint(checkpoint_or_path)
    )
    name = _chosen(checkpoint, domain)
    old = bundle.manifest.report
    if any(model.tensorrt is not None for model in bundle.manifest.models.values()):
        raise UsageError(
            f"{bundle.root} has a tensorrt target, whose choice of plug-ins is one of all domains; "
            "compile it again with all domains"
        )
    if name in old.domains and not replace:
        raise UsageError(f"{bundle.root} has a domain {name!r}; --force replaces it")
    checkpoint = dataclasses.replace(checkpoint, domains={name: checkpoint.domains[name]})
    if old.budget is not None:
        fit: Any = old.fit
        metric: Any = old.metric
        checkpoint = fit_budget(checkpoint, old.budget, metric, fit)
    with BundleWriter(bundle.root, overwrite=True) as writer:
        rest = {key: model for key, model in bundle.manifest.models.items() if key != name}
        kept = _link(bundle, writer.root, name, rest)
        onto = Onto(_left(bundle, name, kept), {name: _free_stem(name, writer.root)})
        run = Run(checkpoint, writer.root, _targets(bundle), None, progress, onto)
        compiled = run.compile()
        order = dict.fromkeys([*old.domains, name])
        models = {key: {**rest, **run.models}[key] for key in order}
        report = dataclasses.replace(
            old,
            domains={key: {**old.domains, **compiled.domains}[key] for key in order},
            held=(*(held for held in old.held if held.domain != name), *compiled.held),
        )
        found = _finish(
            bundle, writer, kept, read_record(writer.root / NATIVE), report, models, name
        )
    action = "replaced" if name in old.domains else "added"
    figures = compiled.domains[name]
    return dataclasses.replace(
        found, action=action, figures=figures, seconds=time.perf_counter() - start
    )


def drop_domain(bundle_dir: str | os.PathLike[str], domain: str) -> DomainChange:
    """Drops a domain of a bundle, and the files that no other domain uses.

    What it shared with others stays as it lies.

    Args:
        bundle_dir: The bundle; it has the native target.
        domain: One of its domains, not the only one.

    Raises:
        BundleError: There is no bundle, or a damaged one.
        UsageError: The bundle has no such domain, or no other one, or cannot be written.
    """
    start = time.perf_counter()
    bundle = _read(bundle_dir)
    models = bundle.manifest.models
    if domain not in models:
        raise UsageError(f"{bundle.root} has no domain {domain!r}; it has {', '.join(models)}")
    if len(models) == 1:
        raise UsageError(f"{domain!r} is the only domain of {bundle.root}; remove the bundle")
    old = bundle.manifest.report
    with BundleWriter(bundle.root, overwrite=True) as writer:
        rest = {key: model for key, model in models.items() if key != domain}
        kept = _link(bundle, writer.root, domain, rest)
        record = _left(bundle, domain, kept)
        write_record(record, writer.root / NATIVE)
        report = dataclasses.replace(
            old,
            domains={key: figures for key, figures in old.domains.items() if key != domain},
            held=tuple(held for held in old.held if held.domain != domain),
        )
        found = _finish(bundle, writer, kept, record, report, rest, domain)
    return dataclasses.replace(found, seconds=time.perf_counter() - start)


def _read(bundle_dir: str | os.PathLike[str]) -> Bundle:
    bundle = read_bundle(Path(bundle_dir))
    if any(model.native is None for model in bundle.manifest.models.values()):
        raise UsageError(
            f"{bundle.root} has no native target, which says what its domains share; compile it "
            "again with all domains"
        )
    bundle.check_hashes()
    return bundle


def _chosen(checkpoint: Checkpoint, domain: str | None) -> str:
    names = ", ".join(checkpoint.domains)
    if domain is None:
        if len(checkpoint.domains) > 1:
            raise UsageError(f"the checkpoint has several domains: {names}; --domain says which")
        return next(iter(checkpoint.domains))
    if domain not in checkpoint.domains:
        raise UsageError(f"the checkpoint has no domain {domain!r}; it has {names}")
    return domain


def _targets(bundle: Bundle) -> list[str]:
    models = bundle.manifest.models.values()
    return [*(["onnx"] if any(model.onnx is not None for model in models) else []), "native"]


def _files_of(model: DomainModel) -> set[str]:
    files: set[str] = set()
    if model.onnx is not None:
        files |= {model.onnx.portable, model.onnx.weights, *(v.file for v in model.onnx.mapped)}
    if model.native is not None:
        files |= {model.native.plan, *model.native.weights}
    if model.tensorrt is not None:
        files |= {*model.tensorrt.weights, *model.tensorrt.plugin_weights}
        files |= {entry.file for entry in model.tensorrt.models}
    return files


def _link(
    bundle: Bundle, root: Path, without_domain: str, rest: Mapping[str, DomainModel]
) -> set[str]:
    """Puts the files that stay into a new directory; returns their relative paths."""
    named: set[str] = set().union(*map(_files_of, rest.values()))
    before = bundle.manifest.models.get(without_domain)
    gone = (set() if before is None else _files_of(before)) - named
    kept = set(bundle.manifest.files) - gone - _REWRITTEN
    for path in sorted(kept):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(bundle.root / path, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(bundle.root / path, target)
    return kept


def _left(bundle: Bundle, domain: str, kept: set[str]) -> Record:
    """Returns the record of what stays."""
    record = read_record(bundle.root / NATIVE)
    if set(record.used) != set(bundle.manifest.models):
        raise BundleError(f"{bundle.root / NATIVE / RECORD} does not name the bundle's domains")
    files = {path.removeprefix(f"{NATIVE}/") for path in kept if path.startswith(f"{NATIVE}/")}
    return within(without(record, domain), files)


def _free_stem(domain: str, root: Path) -> str:
    """Returns a file name without suffix that no file of a domain has."""
    taken = {
        path.name.partition(".")[0].lower()
        for folder in (root / NATIVE, root / ONNX)
        if folder.is_dir()
        for path in folder.iterdir()
    }
    stem = file_stems([domain])[domain]
    free = (f"{stem[:58]}-{number}" for number in itertools.count(2))
    return stem if stem.lower() not in taken else next(s for s in free if s.lower() not in taken)


def _finish(
    bundle: Bundle,
    writer: BundleWriter,
    kept: set[str],
    record: Record,
    report: CompileReport,
    models: Mapping[str, DomainModel],
    domain: str,
) -> DomainChange:
    """Writes the index and the manifest and puts the bundle in its place."""
    plans = [
        (name, Path(model.native.plan).name, (writer.root / model.native.plan).stat().st_size)
        for name, model in models.items()
        if model.native is not None
    ]
    write_index(writer.root / NATIVE, plans)
    spans = {name: _spans(writer.root, model) for name, model in models.items()}
    shared, private = _shared_bytes(list(spans.values()))
    union, intersection = union_and_intersection(record.used)
    report = dataclasses.replace(
        report,
        params_union=union,
        params_intersection=intersection,
        bytes_shared=shared,
        bytes_private=private,
        layout=weight_layouts(record.weights),
    )
    written = {
        name: path.stat().st_size
        for path in writer.root.rglob("*")
        if path.is_file()
        and (name := path.relative_to(writer.root).as_posix()) not in kept | _REWRITTEN
    }
    removed = set(bundle.manifest.files) - kept - _REWRITTEN
    writer.finish(report, models, versions())
    return DomainChange(
        domain=domain,
        action="dropped",
        bytes_written=sum(written.values()),
        bytes_weights=sum(size for name, size in written.items() if _is_native_weights(name)),
        bytes_reused=sum(
            end - begin
            for file, parts in spans.get(domain, {}).items()
            if file in kept and _is_native_weights(file)
            for begin, end in parts
        ),
        bytes_removed=sum(bundle.manifest.files[path].size for path in removed),
        figures=None,
        seconds=0.0,
    )


def _is_native_weights(path: str) -> bool:
    return path.startswith(f"{NATIVE}/weights") and path.endswith(".bin")


def _spans(root: Path, model: DomainModel) -> dict[str, list[Span]]:
    """Returns the bytes of weight files that a domain names, by file; spans do not overlap."""
    found: dict[str, list[Span]] = {}
    if model.native is not None:
        plan = read_plan(root / model.native.plan)
        for tensor in plan.tensors:
            if tensor.place is Place.WEIGHTS:
                length = tensor.elements * tensor.type.dtype.itemsize
                file = f"{NATIVE}/{plan.files[tensor.file].name}"
                found.setdefault(file, []).append((tensor.offset, tensor.offset + length))
    paths: list[str] = []
    if model.onnx is not None:
        paths += [model.onnx.portable, *(variant.file for variant in model.onnx.mapped)]
    if model.tensorrt is not None:
        paths += [entry.file for entry in model.tensorrt.models]
    for path in paths:
        for initializer in onnx.load(root / path, load_external_data=False).graph.initializer:
            if initializer.data_location == onnx.TensorProto.EXTERNAL:
                where = {entry.key: entry.value for entry in initializer.external_data}
                begin, length = int(where.get("offset", 0)), int(where["length"])
                file = f"{path.rpartition('/')[0]}/{where['location']}"
                found.setdefault(file, []).append((begin, begin + length))
    return {file: _joined(spans) for file, spans in found.items()}


def _joined(spans: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _shared_bytes(domains: list[dict[str, list[Span]]]) -> tuple[int, int]:
    """Returns the bytes that two or more domains name, and those that one names."""
    shared = private = 0
    for file in sorted(set().union(*domains)):
        edges = sorted(
            edge
            for domain in domains
            for begin, end in domain.get(file, ())
            for edge in ((begin, 1), (end, -1))
        )
        depth = 0
        for (at, step), (following, _) in itertools.pairwise(edges):
            depth += step
            shared += (following - at) * (depth > 1)
            private += (following - at) * (depth == 1)
    return shared, private
