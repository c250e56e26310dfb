"""What a checkpoint or a bundle holds, layer by layer, and the picture of who uses which channels.

Of a checkpoint the figures are those of its masks as they are, without a budget, counted by the
same passes that compile. Of a bundle they are those of its manifest, which says how many weights a
domain uses, not which: what domains share per layer, and the picture, need the checkpoint.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .bundle import read_bundle
from .checkpoint import Checkpoint, load_checkpoint
from .errors import BackendUnavailableError, UsageError
from .files import write_whole
from .passes.bind import WeightUse
from .passes.figures import UsedPairs, products, union_and_intersection, used_sets
from .passes.remove import analyzed, remove
from .report import Held, LayerFigures, PluginChoice, WeightLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Progress = Callable[[str, int, int], None]
Channels = dict[str, dict[str, npt.NDArray[np.bool_]]]
"""By layer and domain, one bool per input channel: whether the domain uses it there."""
FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Counts:
    """Weights and multiply-accumulates of one domain, in one layer or in all."""

    params_dense: int
    params_used: int
    params_emitted: int
    macs_dense: int
    macs_emitted: int


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product.

    Attributes:
        name: The weight's name.
        kind: The operator type.
        domains: Counts per domain that has the layer.
        params_union: Weights that at least one domain uses; None for a bundle.
        params_intersection: Weights that all domains use; None for a bundle.
    """

    name: str
    kind: str
    domains: dict[str, Counts]
    params_union: int | None = None
    params_intersection: int | None = None


@dataclass(frozen=True)
class Inspection:
    """Figures of a checkpoint or a bundle.

    Attributes:
        source: Which of the two it is.
        domains: Counts per domain, over all layers.
        layers: The layers, in graph order.
        params_union: Weights that at least one domain uses.
        params_intersection: Weights that all domains use.
        bytes_shared: Bytes of the weight file that several domains name; None for a checkpoint.
        bytes_private: Bytes that one domain names; None for a checkpoint.
        held: Masked channels that stay, and the operator that holds them.
        layout: How the native target of a bundle stores every weight.
        memory_limit: Most bytes that its weight file may have, None for no limit.
        plugins: Which weights the tensorrt target of a bundle reads through its plug-in.
    """

    source: Literal["checkpoint", "bundle"]
    domains: dict[str, Counts]
    layers: tuple[Layer, ...]
    params_union: int
    params_intersection: int
    bytes_shared: int | None
    bytes_private: int | None
    held: tuple[Held, ...]
    layout: tuple[WeightLayout, ...] = ()
    memory_limit: int | None = None
    plugins: tuple[PluginChoice, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as plain JSON types."""
        return {"version": 1, **asdict(self)}


def inspect(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Inspection:
    """Counts what a checkpoint file or a bundle directory holds.

    Args:
        path: The file or directory.
        progress: Told the domain that begins, how many are done, and how many there are.

    Raises:
        BundleError: A directory is no bundle, or a damaged one.
        CheckpointError: A file is no checkpoint, or contradicts itself.
        UnsupportedGraphError: The checkpoint's graph holds something that cannot be compiled.
    """
    if is_bundle(path):
        return inspect_bundle(path)
    return inspect_checkpoint(load_checkpoint(path), progress=progress)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Tells a bundle from a checkpoint: a directory, or the manifest in one."""
    return Path(path).is_dir()


def inspect_bundle(path: str | os.PathLike[str]) -> Inspection:
    """Returns the figures of a bundle's manifest."""
    report = read_bundle(Path(path)).manifest.report
    return Inspection(
        source="bundle",
        domains={name: _total(domain.layers) for name, domain in report.domains.items()},
        layers=_layers({name: domain.layers for name, domain in report.domains.items()}),
        params_union=report.params_union,
        params_intersection=report.params_intersection,
        bytes_shared=report.bytes_shared,
        bytes_private=report.bytes_private,
        held=report.held,
        layout=report.layout,
        memory_limit=report.memory_limit,
        plugins=report.plugins,
    )


def inspect_checkpoint(checkpoint: Checkpoint, *, progress: Progress | None = None) -> Inspection:
    """Counts what compiling a checkpoint without a budget would leave."""
    figures: dict[str, tuple[LayerFigures, ...]] = {}
    used: dict[str, dict[WeightUse, UsedPairs]] = {}
    held: list[Held] = []
    for index, name in enumerate(checkpoint.domains):
        if progress is not None:
            progress(name, index, len(checkpoint.domains))
        removed = remove(checkpoint, name)
        figures[name], used[name] = removed.layers, dict(removed.used)
        held.extend(removed.held)
    union, intersection = union_and_intersection(used)
    return Inspection(
        source="checkpoint",
        domains={name: _total(layers) for name, layers in figures.items()},
        layers=_layers(figures, used),
        params_union=union,
        params_intersection=intersection,
        bytes_shared=None,
        bytes_private=None,
        held=tuple(held),
    )


def _total(layers: tuple[LayerFigures, ...]) -> Counts:
    counts = [_counts(layer) for layer in layers]
    return Counts(
        sum(c.params_dense for c in counts),
        sum(c.params_used for c in counts),
        sum(c.params_emitted for c in counts),
        sum(c.macs_dense for c in counts),
        sum(c.macs_emitted for c in counts),
    )


def _counts(layer: LayerFigures) -> Counts:
    return Counts(
        layer.params_dense,
        layer.params_used,
        layer.params_emitted,
        layer.macs_dense,
        layer.macs_emitted,
    )


def _layers(
    figures: Mapping[str, tuple[LayerFigures, ...]],
    used: Mapping[str, Mapping[WeightUse, UsedPairs]] | None = None,
) -> tuple[Layer, ...]:
    """Joins the domains' layers by name; of a weight that is read twice each reading is a row."""
    rows: dict[tuple[str, int], dict[str, Counts]] = {}
    kinds: dict[tuple[str, int], str] = {}
    for domain, layers in figures.items():
        readings: dict[str, int] = {}
        for layer in layers:
            key = layer.name, readings.get(layer.name, 0)
            readings[layer.name] = key[1] + 1
            rows.setdefault(key, {})[domain] = _counts(layer)
            kinds[key] = layer.kind
    found = []
    for (name, reading), domains in rows.items():
        shared = _shared(name, used) if used is not None and reading == 0 else (None, None)
        found.append(Layer(name, kinds[name, reading], domains, *shared))
    return tuple(found)


def _shared(
    name: str, used: Mapping[str, Mapping[WeightUse, UsedPairs]]
) -> tuple[int | None, int | None]:
    own = {
        domain: {use: pairs for use, pairs in sets.items() if use.name == name}
        for domain, sets in used.items()
    }
    return union_and_intersection(own) if any(own.values()) else (None, None)


def channels(checkpoint: Checkpoint) -> Channels:
    """Returns which input channels of every layer each domain uses, masks and dead code counted."""
    found: Channels = {}
    for domain in checkpoint.domains:
        model, facts = analyzed(checkpoint, domain)
        used = used_sets(model.graph, facts)
        for node, _, layer in products(model.graph, facts):
            use = node.meta["weight"]
            found.setdefault(use.name, {})[domain] = layer.by_channel(used[use].pairs)
    return found


def plot(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Draws which domain uses which input channels of every layer.

    A layer is a band with one line per domain. Its channels stand side by side, those that most
    domains use first; the colour says how many domains use a channel, white that this one does not.

    Args:
        checkpoint: The checkpoint; its masks are taken as they are.
        path: The file to write; `.png`, `.pdf` or `.svg`.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        UsageError: The file cannot be written.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    used = channels(checkpoint)
    lines = len(used) * (len(checkpoint.domains) + 1)
    figure = Figure(figsize=(10, min(1.5 + 0.09 * lines, 60)), layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), used, list(checkpoint.domains))
    image = io.BytesIO()
    figure.savefig(image, format=Path(path).suffix[1:], dpi=150)
    write_whole(path, image.getvalue())


def check_plot(path: str | os.PathLike[str]) -> None:
    """Refuses what `plot` would refuse, before any work.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        UsageError: The file's ending or its directory is wrong.
    """
    if Path(path).suffix not in FORMATS:
        raise UsageError(f"{os.fspath(path)}: a picture ends in {', '.join(FORMATS)}")
    if not Path(path).parent.is_dir():
        raise UsageError(f"cannot write {os.fspath(path)}: {Path(path).parent} is not a directory")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            "the picture needs matplotlib: pip install 'mdprune-deploy[plot]'"
        ) from error


def _draw(axes: Axes, used: Channels, domains: list[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    many = len(domains)
    shades = colormaps["viridis_r"](np.linspace(0.1, 1.0, many))
    colours = ListedColormap([(1.0, 1.0, 1.0, 1.0), *map(tuple, shades)])
    ticks, names = [], []
    for index, (layer, masks) in enumerate(used.items()):
        top = index * (many + 1)
        band = sharing(masks, domains)
        extent = (0.0, 1.0, top + many, top)
        axes.imshow(
            band, cmap=colours, vmin=0, vmax=many, extent=extent, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        ticks.append(top + many / 2)
        names.append(f"{layer} ({band.shape[1]})")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(used) * (many + 1), -1)
    axes.set_yticks(ticks, names, fontsize=6)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("input channels of the layer, those that most domains use first")
    axes.set_title(f"Channels that each domain uses; lines from above: {', '.join(domains)}")
    axes.title.set_fontsize(8)
    axes.title.set_wrap(True)
    axes.title.set_parse_math(False)
    legend = [
        Patch(color=colours(count), label=f"used by {count}" if count < many else "used by all")
        for count in range(1, many + 1)
    ]
    axes.legend(handles=legend, fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def sharing(
    masks: Mapping[str, npt.NDArray[np.bool_]], domains: list[str]
) -> npt.NDArray[np.int64]:
    """Returns the picture of one layer: a line per domain, a column per channel.

    Args:
        masks: One bool per channel for each domain that has the layer.
        domains: All domains, in order.

    Returns:
        Shape `(domains, channels)`: 0 where the domain does not use the channel, otherwise how many
        domains use it. Columns are sorted by that number, falling, then by who uses them.
    """
    size = max(len(mask) for mask in masks.values())
    rows = np.zeros((len(domains), size), dtype=np.int64)
    for index, domain in enumerate(domains):
        if domain in masks:
            rows[index, : len(masks[domain])] = masks[domain]
    count = rows.sum(axis=0)
    order = np.lexsort((*(-rows[::-1]), -count))
    picture: npt.NDArray[np.int64] = (rows * count)[:, order]
    return picture
