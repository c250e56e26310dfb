"""Compiles the families of pytorchcv with random weights and random masks.

Every convolution and linear layer that does not read the image loses a random half of its input
channels. A family is exact where the compile's own check passes, which holds every family to the
masked dense model in float64 and in ONNX Runtime.

    python -m benchmarks.zoo                 # all families, writes docs/zoo.md
    python -m benchmarks.zoo resnet18 vgg11  # some, replaces their rows there

Needs `pip install --no-deps pytorchcv`: with its dependencies comes another PyTorch.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

import mdprune_deploy as mdp
from mdprune_deploy import Domain, Mask
from mdprune_deploy.passes.bind import bind
from mdprune_deploy.passes.lower import to_float32
from mdprune_deploy.passes.remove import remove
from mdprune_deploy.verify import deviation

OUTPUT = Path(__file__).parents[1] / "docs" / "zoo.md"
KEEP = 0.5
"""Share of the input channels that every mask keeps."""
LARGE = 1e3
"""Scale of the inputs that rounding is measured on: that of the compile's large input."""
DRAWS = 8
SIZES = (64, 128)
FAMILIES = (
    "alexnet", "zfnet", "vgg11", "bn_vgg11b", "bninception", "resnet18", "preresnet18",
    "resnext26_32x4d", "seresnet18", "sepreresnet18", "seresnext50_32x4d", "senet16",
    "resnestabc14", "ibn_resnet50", "airnet50_1x64d_r2", "bam_resnet18", "cbam_resnet18",
    "resattnet56", "scnet50", "regnetx002", "regnety002", "diaresnet10", "pyramidnet101_a360",
    "diracnet18v2", "densenet121", "condensenet74_c4_g4", "sparsenet121", "peleenet", "wrn50_2",
    "drnc26", "dpn68", "darknet_tiny", "darknet53", "irevnet301", "bagnet9", "dla34", "dla46c",
    "fishnet99", "espnetv2_wd2", "dicenet_wd2", "hrnet_w18_small_v1", "vovnet27s", "selecsls42b",
    "hardnet39ds", "xdensenet121_2", "squeezenet_v1_1", "sqnxt23_w1", "shufflenet_g3_wd4",
    "shufflenetv2_wd2", "menet108_8x1_g3", "mobilenet_wd4", "mobilenetb_wd4", "fdmobilenet_wd4",
    "mobilenetv2_wd4", "mobilenetv3_small_wd2", "igcv3_wd4", "ghostnet", "mnasnet_b1",
    "proxylessnas_cpu", "fbnet_cb", "xception", "inceptionv3", "inceptionv4", "inceptionresnetv1",
    "polynet", "nasnet_4a1056", "pnasnet5large", "efficientnet_b0", "efficientnet_b0b", "mixnet_s",
    "isqrtcovresnet18", "resneta10", "resnetd50b", "spnasnet", "octresnet10_ad2",
    "fcn8sd_resnetd50b_voc", "unet_cityscapes", "lednet_cityscapes", "cgnet_cityscapes",
    "dabnet_cityscapes",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one family's compile came to.

    Attributes:
        family: The model's name in pytorchcv.
        outcome: `"exact"`; `"refused"` by name; `"rounding"`, refused since float32 rounds by more
            than the bound, the graph being exact in float64; `"differs"`, a bug; `"not built"`.
        note: The error's message, or what held channels.
        macs_dense: Multiply-accumulates of the dense model.
        macs_emitted: Those of the compiled one.
        macs_used: Share of the parameters that masks and dead code leave.
        seconds: Export and compile.
    """

    family: str
    outcome: str
    note: str = ""
    macs_dense: int = 0
    macs_emitted: int = 0
    macs_used: float = 0.0
    seconds: float = 0.0


def main() -> None:
    """Runs the families in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="models of pytorchcv; default: all listed")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds per family")
    arguments = parser.parse_args()
    rows = rows_of(OUTPUT.read_text()) if arguments.families and OUTPUT.exists() else {}
    for family in arguments.families or FAMILIES:
        rows[family] = row(in_process(family, arguments.limit))
        print(rows[family], flush=True)
    OUTPUT.write_text(table([rows[family] for family in FAMILIES if family in rows]))


def rows_of(page: str) -> dict[str, str]:
    """Returns the lines of a written page by family."""
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line[:1] == "|"}
    return {family: lines[family] for family in FAMILIES if family in lines}


def in_process(family: str, limit: float) -> Outcome:
    """Compiles a family in a process that may take `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(family, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return Outcome(family, "not built", f"stopped after {limit:.0f} s", seconds=limit)
        found = receiver.recv()
        assert isinstance(found, Outcome)
        return found
    except EOFError:
        return Outcome(family, "not built", "the process ended without a result")
    finally:
        process.terminate()
        process.join()


def _send(family: str, sender: object) -> None:
    torch.set_num_threads(1)
    sender.send(compile_family(family))  # type: ignore[attr-defined]


def compile_family(family: str) -> Outcome:
    """Builds, masks and compiles one family."""
    try:
        model, example = build(family)
    except Exception as error:  # the zoo's own bugs are not ours
        return Outcome(family, "not built", f"{type(error).__name__}: {error}"[:200])
    domain = Domain(random_masks(model))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        try:
            mdp.save_checkpoint(path, model, example, {"d": domain})
            del model
            gc.collect()
            report = mdp.compile(path, Path(folder) / "out", targets=("onnx",))
        except mdp.VerificationError as error:
            seconds = time.perf_counter() - start
            if "graph in float64" in str(error):
                return Outcome(family, "differs", str(error), seconds=seconds)
            note = f"{error}; {rounding(mdp.load_checkpoint(path))}"
            return Outcome(family, "rounding", note, seconds=seconds)
        except mdp.Error as error:
            seconds = time.perf_counter() - start
            return Outcome(family, "refused", f"{type(error).__name__}: {error}", seconds=seconds)
    figures = report.domains["d"]
    holders = sorted({held.operator for held in report.held})
    return Outcome(
        family, "exact", ", ".join(holders), figures.macs_dense, figures.macs_emitted,
        figures.params_used / max(figures.params_dense, 1), time.perf_counter() - start,
    )  # fmt: skip


def rounding(checkpoint: mdp.Checkpoint) -> str:
    """Says how much float32 rounds the compiled and the masked dense model on large inputs."""
    ((name, example),) = checkpoint.examples.items()
    exact = mdp.reference(checkpoint, "d")
    models = {"compiled": remove(checkpoint, "d").model, "masked dense": bind(checkpoint, "d")}
    found: dict[str, list[float]] = {what: [] for what in models}
    sessions = {
        what: onnxruntime.InferenceSession(ir.to_proto(to_float32(model)).SerializeToString())
        for what, model in models.items()
    }
    for seed in range(DRAWS):
        x = np.random.default_rng(seed).normal(scale=LARGE, size=example.shape).astype(np.float32)
        expected = exact(x)
        first = expected[0] if isinstance(expected, list) else expected
        for what, session in sessions.items():
            found[what].append(deviation(first, session.run(None, {name: x})[0])[1])
    return ", ".join(
        f"{what} {np.median(errors):.1e}, at most {max(errors):.1e}"
        for what, errors in found.items()
    )


def build(family: str) -> tuple[nn.Module, torch.Tensor]:
    """Returns a model with random weights in eval mode, and an example input."""
    # One video model of pytorchcv imports torchvision for one class; none of these needs it.
    operators = types.ModuleType("torchvision.ops")
    operators.DeformConv2d = nn.Conv2d  # type: ignore[attr-defined]
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    sys.modules["torchvision.ops"] = operators
    from pytorchcv.model_provider import get_model

    del sys.modules["torchvision"], sys.modules["torchvision.ops"]
    torch.manual_seed(0)
    model = get_model(family, pretrained=False).eval()
    example = torch.randn(1, 3, *_size(model))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.25)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0.0, 0.1)
    return model, example


def _size(model: nn.Module) -> tuple[int, int]:
    """Returns the smallest of a few image sizes that the model takes, to save time.

    A last pooling of the whole map is made to fit maps of other sizes.
    """
    features = getattr(model, "features", None)
    if isinstance(getattr(features, "final_pool", None), nn.AvgPool2d):
        features.final_pool = nn.AdaptiveAvgPool2d(1)
    for size in SIZES:
        try:
            with torch.no_grad():
                model(torch.randn(1, 3, size, size))
        except (RuntimeError, ValueError, AssertionError):
            continue
        return size, size
    height, width = model.in_size
    return height, width


def random_masks(model: nn.Module) -> dict[str, Mask]:
    """Returns a mask on the input channels of every layer that reads more than the image."""
    generator = torch.Generator().manual_seed(0)
    masks: dict[str, Mask] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            channels = module.in_channels
        elif isinstance(module, nn.Linear):
            channels = module.in_features
        else:
            continue
        if channels > 3:
            on = torch.rand(channels, generator=generator) < KEEP
            on[0] = True
            masks[f"{name}.weight"] = Mask(on, "in")
    return masks


def row(outcome: Outcome) -> str:
    """Returns a line of the table."""
    removed = ""
    used = ""
    if outcome.macs_dense:
        removed = f"{1 - outcome.macs_emitted / outcome.macs_dense:.0%}"
        used = f"{outcome.macs_used:.0%}"
    note = outcome.note.replace("|", "/").replace("\n", " ")
    return (
        f"| {outcome.family} | {outcome.outcome} | {removed} | {used} | {outcome.seconds:.0f} "
        f"| {note} |"
    )


def table(rows: list[str]) -> str:
    """Returns the page."""
    outcomes = [line.split("|")[2].strip() for line in rows]
    count = {kind: outcomes.count(kind) for kind in
             ("exact", "refused", "rounding", "differs", "not built")}  # fmt: skip
    head = f"""# Model zoo

{len(rows)} models of pytorchcv with random weights; every convolution and linear layer that
does not read the image keeps a random half of its input channels. Written by
`python -m benchmarks.zoo`. Exact: the compiled model equals the masked dense one, to 1e-9 in
float64 and to 1e-5 in ONNX Runtime. MACs removed and parameters used count from the dense model;
seconds are export, compile and check on one core. The last column names what held channels, or
why the compile stopped.

Exact {count["exact"]}; refused {count["refused"]}; refused for float32 rounding
{count["rounding"]}; different {count["differs"]}; not built {count["not built"]}.

Rounding: the graph is exact in float64, but on inputs a thousand times as large as usual float32
rounds by more than the bound, in the masked dense model as in the compiled one: a sigmoid of sums
in the thousands has lost the digits that it needs where such a sum is near zero. The rows
give medians and maxima over {DRAWS} such inputs.

| model | outcome | MACs removed | parameters used | seconds | held by, or why |
| --- | --- | --- | --- | --- | --- |
"""
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
