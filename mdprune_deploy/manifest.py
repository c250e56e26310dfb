"""`manifest.json`: what a bundle holds, as data, and the reader that trusts nothing in it.

The format is specified in `docs/bundle-format.md`. Top level: the compile report's own fields, then
`format`, `versions`, `models` (per domain what a caller must know to run it, and where each target
lies) and `files` (size and sha256 of everything else in the directory). Unknown keys are ignored,
so that a later version may add some.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from mdprune_deploy.errors import BundleError
from mdprune_deploy.report import (
    VERSION,
    CompileReport,
    DomainReport,
    Held,
    LayerFigures,
    Missing,
    PluginChoice,
    WeightLayout,
)

NAME = "manifest.json"
FORMAT = "mdprune-bundle"
MAX_BYTES = 64 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a domain's model.

    Attributes:
        name: The tensor's name.
        shape: Sizes; None where any size is taken.
        dtype: NumPy's name of the element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class MappedVariant:
    """A model that one version of ONNX Runtime optimised for one blocked layout.

    Attributes:
        file: The model, relative to the bundle.
        isa: The instruction set that the layout belongs to.
        block: Channels per block of the layout.
        onnxruntime: The version that wrote it and alone may load it.
        prepacking: Whether sessions repack weights on load, which copies them: worth it only
            where matrix products have several rows.
    """

    file: str
    isa: str
    block: int
    onnxruntime: str
    prepacking: bool


@dataclass(frozen=True)
class OnnxFiles:
    """The ONNX target of one domain; every path is relative to the bundle.

    Attributes:
        portable: Stock operators, for any runtime.
        weights: The shared weight file that all models name.
        mapped: Ready-optimised variants.
    """

    portable: str
    weights: str
    mapped: tuple[MappedVariant, ...] = ()


@dataclass(frozen=True)
class NativeFiles:
    """The native target of one domain; every path is relative to the bundle.

    Attributes:
        plan: The domain's plan.
        weights: The weight files that it names.
        arena: Bytes of activation memory that it needs.
        params_emitted: Weight elements that the plan reads; the report's count is that of the
            `onnx` target where there is one.
        macs_emitted: Multiply-accumulates of the plan at batch 1.
    """

    plan: str
    weights: tuple[str, ...]
    arena: int
    params_emitted: int
    macs_emitted: int


@dataclass(frozen=True)
class TensorrtModel:
    """One strongly typed model of the `tensorrt` target; its path is relative to the bundle.

    Attributes:
        file: The model.
        precision: `fp32` or `fp16`: the type of activations and weights inside; inputs and
            outputs are float32.
        plugins: How many of its nodes are `mdprune::GatherConv`; 0: every TensorRT takes it.
        max_rel_error: Against the reference, as found when it was compiled.
    """

    file: str
    precision: str
    plugins: int
    max_rel_error: float


@dataclass(frozen=True)
class TensorrtFiles:
    """The TensorRT target of one domain; every path is relative to the bundle.

    Attributes:
        models: Its models.
        weights: The weight files that they name.
        plugin_weights: The native target's weight files that plug-in nodes name.
    """

    models: tuple[TensorrtModel, ...]
    weights: tuple[str, ...]
    plugin_weights: tuple[str, ...]


@dataclass(frozen=True)
class DomainModel:
    """What a caller must know to run one domain.

    Attributes:
        labels: Class names in the order of the output's classes, or None.
        inputs: The inputs, in order.
        outputs: The outputs, in order.
        dynamic_batch: Whether the first axis of every input may have any size.
        onnx: Files of the `onnx` target, or None if the bundle has none.
        native: Files of the `native` target, or None if the bundle has none.
        tensorrt: Files of the `tensorrt` target, or None if the bundle has none.
    """

    labels: tuple[str, ...] | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic_batch: bool
    onnx: OnnxFiles | None = None
    native: NativeFiles | None = None
    tensorrt: TensorrtFiles | None = None


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (lower-case hexadecimal) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A parsed `manifest.json`.

    Attributes:
        report: The figures of the compile, without its wall time.
        models: Per domain what runs it, in the report's order.
        versions: Versions of what made the bundle, such as `mdprune` and `onnxruntime`.
        files: Every other file of the bundle by its relative path.
    """

    report: CompileReport
    models: dict[str, DomainModel]
    versions: dict[str, str]
    files: dict[str, FileEntry]

    def to_text(self) -> str:
        """Returns the file's text; the wall time is left out, so equal input gives equal bytes."""
        tree = {
            "format": FORMAT,
            **dataclasses.replace(self.report, seconds=None).to_json(),
            "versions": self.versions,
            "models": {domain: _model_to_json(model) for domain, model in self.models.items()},
            "files": {path: dataclasses.asdict(self.files[path]) for path in sorted(self.files)},
        }
        return json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _model_to_json(model: DomainModel) -> dict[str, Any]:
    tree = dataclasses.asdict(model)
    targets = {name: tree.pop(name) for name in ("onnx", "native", "tensorrt")}
    return {**tree, "targets": {name: files for name, files in targets.items() if files}}


def parse(text: str) -> Manifest:
    """Parses a manifest.

    Args:
        text: The contents of `manifest.json`.

    Raises:
        BundleError: A field is missing, of the wrong type or out of range, or a path leaves the
            bundle; the message names the field.
    """
    try:
        tree = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{NAME}: not valid JSON: {error}") from error
    root = _Field(tree, "")
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise BundleError(f"{NAME}: not a manifest of an mdprune bundle (no format {FORMAT!r})")
    version = root["version"].integer()
    if version != VERSION:
        raise BundleError(f"{NAME}: bundle version {version}; this mdprune reads {VERSION}")
    files = root["files"].mapping(_file_entry)
    for path in files:
        _check_path(path)
    models = root["models"].mapping(lambda field: _model(field, files))
    report = _report(root)
    if list(models) != list(report.domains):
        raise BundleError(f"{NAME}: models and domains do not name the same domains")
    versions = root["versions"].mapping(_Field.text)
    return Manifest(report, models, versions, files)


class _Field:
    """A value of the tree that knows where it stands, so that an error can say so."""

    def __init__(self, value: Any, place: str) -> None:
        self.value = value
        self.place = place

    def error(self, fact: str) -> BundleError:
        return BundleError(f"{NAME}: {self.place or 'the top level'} {fact}")

    def _expect(self, fits: bool, what: str) -> Any:
        if not fits:
            shown = json.dumps(self.value)
            raise self.error(f"is {shown[:60]}{'...' * (len(shown) > 60)}, expected {what}")
        return self.value

    def __getitem__(self, key: str) -> _Field:
        tree = self._expect(isinstance(self.value, dict), "an object")
        if key not in tree:
            raise self.error(f"has no field {key!r}")
        return _Field(tree[key], f"{self.place}.{key}" if self.place else key)

    def get(self, key: str, default: Any) -> _Field:
        """Returns a field that older bundles do not have."""
        tree = self._expect(isinstance(self.value, dict), "an object")
        return self[key] if key in tree else _Field(default, key)

    def text(self) -> str:
        value: str = self._expect(isinstance(self.value, str), "a text")
        return value

    def integer(self, minimum: int = 0) -> int:
        fits = type(self.value) is int and self.value >= minimum
        value: int = self._expect(fits, f"an integer of at least {minimum}")
        return value

    def number(self) -> float:
        fits = type(self.value) in (int, float) and 0 <= self.value < math.inf
        return float(self._expect(fits, "a number of at least 0"))

    def flag(self) -> bool:
        value: bool = self._expect(type(self.value) is bool, "true or false")
        return value

    def sequence(self, parse_item: Callable[[_Field], T]) -> tuple[T, ...]:
        items = self._expect(isinstance(self.value, list), "a list")
        return tuple(parse_item(_Field(v, f"{self.place}[{i}]")) for i, v in enumerate(items))

    def mapping(self, parse_item: Callable[[_Field], T]) -> dict[str, T]:
        tree: Mapping[str, Any] = self._expect(isinstance(self.value, dict), "an object")
        return {key: parse_item(_Field(v, f"{self.place}.{key}")) for key, v in tree.items()}

    def optional(self, parse_value: Callable[[_Field], T]) -> T | None:
        return None if self.value is None else parse_value(self)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("an object names one key twice")
    return tree


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_path(text: str) -> None:
    """Refuses what is not a path below the bundle, in normal form, with forward slashes."""
    path = PurePosixPath(text)
    leaves = path.is_absolute() or ".." in path.parts or any(c in text for c in "\\:\0")
    if leaves or str(path) != text or text in (".", NAME):
        raise BundleError(f"{NAME}: files names {text!r}, no plain relative path in the bundle")


def _file_entry(field: _Field) -> FileEntry:
    sha256 = field["sha256"].text()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise field["sha256"].error(f"is {sha256[:70]!r}, expected 64 hexadecimal digits")
    return FileEntry(field["size"].integer(), sha256)


def _model(field: _Field, files: Mapping[str, FileEntry]) -> DomainModel:
    targets = field["targets"].mapping(lambda target: target)
    onnx, native, tensorrt = (targets.get(name) for name in ("onnx", "native", "tensorrt"))
    return DomainModel(
        labels=field["labels"].optional(lambda labels: labels.sequence(_Field.text)),
        inputs=field["inputs"].sequence(_tensor_spec),
        outputs=field["outputs"].sequence(_tensor_spec),
        dynamic_batch=field["dynamic_batch"].flag(),
        onnx=None if onnx is None else _onnx_files(onnx, files),
        native=None if native is None else _native_files(native, files),
        tensorrt=None if tensorrt is None else _tensorrt_files(tensorrt, files),
    )


def _tensor_spec(field: _Field) -> TensorSpec:
    return TensorSpec(
        name=field["name"].text(),
        shape=field["shape"].sequence(lambda size: size.optional(_Field.integer)),
        dtype=field["dtype"].text(),
    )


def _listed(path: _Field, files: Mapping[str, FileEntry]) -> str:
    if path.text() not in files:
        raise path.error(f"names {path.text()!r}, which 'files' does not list")
    return path.text()


def _native_files(field: _Field, files: Mapping[str, FileEntry]) -> NativeFiles:
    return NativeFiles(
        plan=_listed(field["plan"], files),
        weights=field["weights"].sequence(lambda path: _listed(path, files)),
        arena=field["arena"].integer(),
        params_emitted=field["params_emitted"].integer(),
        macs_emitted=field["macs_emitted"].integer(),
    )


def _onnx_files(field: _Field, files: Mapping[str, FileEntry]) -> OnnxFiles:
    def listed(path: _Field) -> str:
        return _listed(path, files)

    def variant(item: _Field) -> MappedVariant:
        return MappedVariant(
            file=listed(item["file"]),
            isa=item["isa"].text(),
            block=item["block"].integer(1),
            onnxruntime=item["onnxruntime"].text(),
            prepacking=item["prepacking"].flag(),
        )

    return OnnxFiles(
        portable=listed(field["portable"]),
        weights=listed(field["weights"]),
        mapped=field["mapped"].sequence(variant),
    )


def _tensorrt_files(field: _Field, files: Mapping[str, FileEntry]) -> TensorrtFiles:
    def model(item: _Field) -> TensorrtModel:
        return TensorrtModel(
            file=_listed(item["file"], files),
            precision=item["precision"].text(),
            plugins=item["plugins"].integer(),
            max_rel_error=item["max_rel_error"].number(),
        )

    return TensorrtFiles(
        models=field["models"].sequence(model),
        weights=field["weights"].sequence(lambda path: _listed(path, files)),
        plugin_weights=field["plugin_weights"].sequence(lambda path: _listed(path, files)),
    )


def _report(root: _Field) -> CompileReport:
    return CompileReport(
        domains=root["domains"].mapping(_domain_report),
        params_union=root["params_union"].integer(),
        params_intersection=root["params_intersection"].integer(),
        bytes_shared=root["bytes_shared"].integer(),
        bytes_private=root["bytes_private"].integer(),
        seconds=root["seconds"].optional(_Field.number),
        held=root["held"].sequence(lambda item: _figures(item, Held)),
        missing=root.get("missing", []).sequence(lambda item: _figures(item, Missing)),
        layout=root.get("layout", []).sequence(_weight_layout),
        memory_limit=root.get("memory_limit", None).optional(_Field.integer),
        plugins=root.get("plugins", []).sequence(_plugin_choice),
        budget=root["budget"].optional(_Field.number),
        metric=root["metric"].text(),
        fit=root["fit"].optional(_Field.text),
    )


def _weight_layout(field: _Field) -> WeightLayout:
    domains = {key: field[key].sequence(_Field.text) for key in ("readers", "private")}
    return _figures(field, WeightLayout, **domains)


def _plugin_choice(field: _Field) -> PluginChoice:
    return _figures(field, PluginChoice, plugin=field["plugin"].flag())


def _domain_report(field: _Field) -> DomainReport:
    layers = field["layers"].sequence(lambda item: _figures(item, LayerFigures))
    return _figures(field, DomainReport, layers=layers)


def _figures(field: _Field, kind: Callable[..., T], **given: Any) -> T:
    """Builds a report dataclass whose fields are texts, counts and figures."""
    readers: dict[str, Callable[[_Field], Any]]
    readers = {"str": _Field.text, "int": _Field.integer, "float": _Field.number}
    wanted = [f for f in dataclasses.fields(kind) if f.name not in given]  # type: ignore[arg-type]
    return kind(**{f.name: readers[str(f.type)](field[f.name]) for f in wanted}, **given)
