"""Files that must be refused: each changes one fact of a good checkpoint and seals it again.

A change gets the JSON document and the tensors and alters them in place. The digest is made
afterwards, so what refuses the file is the check for the fact, not the digest.
"""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import safetensors
import safetensors.torch
import torch

from mdprune_deploy.checkpoint_file import _sealed

Document = dict
Tensors = dict[str, torch.Tensor]
Change = Callable[[Document, Tensors], None]


def read_parts(path: Path) -> tuple[Document, Tensors]:
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        document = json.loads(file.metadata()["mdprune"])
    del document["sha256"]
    return document, tensors


def write_parts(path: Path, document: Document, tensors: Tensors) -> None:
    text = _sealed(document, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"mdprune": text}))


def graph(change: Callable[[onnx.ModelProto], object]) -> Change:
    def apply(document: Document, tensors: Tensors) -> None:
        proto = onnx.ModelProto.FromString(tensors["graph"].numpy().tobytes())
        change(proto)
        tensors["graph"] = torch.frombuffer(bytearray(proto.SerializeToString()), dtype=torch.uint8)

    return apply


def _external(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer.add(name="stolen", data_type=onnx.TensorProto.UINT8, dims=[8])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _external_attribute(proto: onnx.ModelProto) -> None:
    node = proto.graph.node.add(op_type="Constant", output=["stolen"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.name, attribute.t.data_type = "stolen", onnx.TensorProto.UINT8
    attribute.t.external_data.add(key="location", value="/etc/passwd")


def _short_constant(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer.add(name="short", data_type=onnx.TensorProto.FLOAT, dims=[9])
    tensor.raw_data = b"\0" * 8


def _huge_constant(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer.add(name="huge", data_type=onnx.TensorProto.FLOAT)
    tensor.dims.extend([1 << 40, 1 << 20])
    tensor.raw_data = b"\0" * 8


def _no_text(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "Conv")
    next(item for item in node.attribute if item.name == "auto_pad").s = b"\xff"


def _untyped_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 99


def _function(proto: onnx.ModelProto) -> None:
    proto.functions.add(name="f", domain="x")


def _unknown_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Cnv"


def _loop(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]


def _set(*path: object, to: object) -> Change:
    def apply(document: Document, tensors: Tensors) -> None:
        place = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return apply


def _drop(*path: object) -> Change:
    def apply(document: Document, tensors: Tensors) -> None:
        place = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return apply


def _tensor(name: str, value: torch.Tensor) -> Change:
    return lambda document, tensors: tensors.__setitem__(name, value)


def _repeat_domain(document: Document, tensors: Tensors) -> None:
    document["domains"][1]["name"] = document["domains"][0]["name"]


BYTE_TWO = torch.tensor([2, 0, 1], dtype=torch.uint8).view(torch.bool)

# Domain 0 of the file is `first`: mask 0 on `conv` (bool, 3 channels), mask 1 on `conv` (scores, 8
# channels, out), state for `fc.weight` (9, 8) and `fc.bias` (9). Domain 1 is `second`.
CASES: dict[str, tuple[Change, str]] = {
    "format": (_set("format", to="x"), "does not say that it is of the format"),
    "version 2": (_set("version", to=2), "has version 2; this program reads version 1"),
    "version true": (_set("version", to=True), "has version True; this program reads version 1"),
    "no version": (_drop("version"), "has version None; this program reads version 1"),
    "missing member": (_drop("opset"), "metadata lacks 'opset'"),
    "unknown member": (_set("extra", to=1), "metadata holds unknown field 'extra'"),
    "wrong type": (_set("dynamic_batch", to="yes"), "'dynamic_batch' of metadata is a str"),
    "opset differs": (_set("opset", to=19), r"operator sets \[20\] where the metadata says 19"),
    "opset bool": (_set("opset", to=True), "'opset' of metadata is a bool, not a int"),
    "example name": (_set("examples", 0, to=7), "an entry of examples is a int, not a str"),
    "example twice": (_set("examples", to=["x", "x"]), "examples names one tensor twice"),
    "example missing": (_set("examples", to=["x", "z"]), "lacks tensor 'example/z'"),
    "parameters order": (
        lambda document, tensors: document["parameters"].reverse(),
        "the inputs of its graph are not its examples and parameters",
    ),
    "parameter left over": (
        lambda document, tensors: document["parameters"].pop(),
        "holds tensor 'parameter/.*', which nothing names",
    ),
    "alias type": (_set("aliases", "x", to=1), "'x' of aliases is a int"),
    "alias target": (_set("aliases", "q", to="nowhere"), "alias 'q' of 'nowhere' fits no param"),
    "alias of itself": (_set("aliases", "fc.bias", to=""), "alias 'fc.bias' of '' fits no param"),
    "site missing": (_drop("sites", "conv"), "the sites and the masks disagree about 'conv'"),
    "site extra": (_set("sites", "fc", to="fc.weight"), "sites and the masks disagree about 'fc'"),
    "site not a weight": (_set("sites", "conv", to="bn.bias"), "reads 'bn.bias' as its weight"),
    "site nowhere": (_set("sites", "conv", to="x"), "reads 'x' as its weight"),
    "no domains": (
        lambda document, tensors: (
            document["domains"].clear(),
            [tensors.pop(name) for name in list(tensors) if name[:5] in ("mask/", "state")],
        ),
        "there are no domains",
    ),
    "domain type": (_set("domains", 0, to=[]), "domain 0 is a list, not a dict"),
    "domain member": (_drop("domains", 0, "labels"), "domain 0 lacks 'labels'"),
    "domain twice": (_repeat_domain, "holds two domains called 'first'"),
    "domain empty name": (_set("domains", 0, "name", to=""), "name '' is not a non-empty string"),
    "domain path": (_set("domains", 0, "name", to="../up"), "name '../up' cannot name a folder"),
    "domain surrogate": (_set("domains", 0, "name", to="\ud800"), "cannot name a folder"),
    "labels type": (_set("domains", 0, "labels", to="abc"), "labels of domain 0 is a str"),
    "labels entries": (_set("domains", 0, "labels", to=[1]), "labels of domain 0 is a int"),
    "labels count": (
        _set("domains", 0, "labels", to=["a"] * 8),
        "'first' has 8 labels but its output has 9 classes",
    ),
    "mask axis": (_set("domains", 0, "masks", 0, "axis", to="up"), "axis 'up'; it is 'in' or"),
    "mask site": (_set("domains", 0, "masks", 0, "site", to="bias"), "site 'bias'; it is 'weight'"),
    "mask output in": (_set("domains", 0, "masks", 0, "site", to="output"), "needs axis 'out'"),
    "mask threshold": (
        _set("domains", 0, "masks", 0, "threshold", to="0"),
        "'threshold' of mask 0 of domain 0 is a str, not a float",
    ),
    "mask tensor": (
        _set("domains", 0, "masks", 0, "tensor", to="mask/0/1"),
        "mask 0 of domain 0 names tensor 'mask/0/1'",
    ),
    "mask left over": (_tensor("mask/0/9", torch.ones(3)), "holds tensor 'mask/0/9', which"),
    "mask length": (_tensor("mask/0/0", torch.ones(4) > 0), "has 4 entries; Conv .* has 3 input"),
    "mask rank": (_tensor("mask/0/0", torch.ones(3, 1) > 0), r"has shape \(3, 1\); masks have one"),
    "mask dtype": (_tensor("mask/0/0", torch.ones(3).int()), "is torch.int32; switches are bool"),
    "mask byte 2": (_tensor("mask/0/0", BYTE_TWO), "holds a byte that is neither 0 nor 1"),
    "score nan": (
        _tensor("mask/0/1", torch.tensor([0.0, torch.nan, *[1.0] * 6])),
        "mask on 'conv' has score nan at channel 1",
    ),
    "state tensor": (
        _set("domains", 0, "state", "fc.bias", to="state/0/fc.weight"),
        "state 'fc.bias' of domain 0 names tensor 'state/0/fc.weight'",
    ),
    "state dtype": (
        _tensor("state/0/fc.bias", torch.ones(9).double()),
        "state 'fc.bias' is torch.float64, the parameter torch.float32",
    ),
    "state rank": (
        _tensor("state/0/fc.bias", torch.ones(9, 1)),
        r"state 'fc.bias' has shape \[9, 1\], the parameter \[5\]",
    ),
    "state shape": (
        _tensor("state/0/fc.bias", torch.ones(7)),
        "'fc.bias' of Gemm .* has 7 channels instead of 9",
    ),
    "parameter shape": (
        _tensor("parameter/fc.bias", torch.ones(4)),
        r"parameter 'fc.bias' is FLOAT \[4\] but its graph declares FLOAT \[5\]",
    ),
    "parameter dtype": (
        _tensor("parameter/fc.bias", torch.ones(5).int()),
        "parameter 'fc.bias' is INT32",
    ),
    "example shape": (
        _tensor("example/x", torch.ones(1, 4, 8, 8)),
        r"the example for input 'x' is float32 \[1, 4, 8, 8\]",
    ),
    "example empty": (_tensor("example/x", torch.ones(0, 3, 8, 8)), "the example for input 'x'"),
    "graph missing": (lambda document, tensors: tensors.pop("graph"), "lacks tensor 'graph'"),
    "graph bytes": (_tensor("graph", torch.full((64,), 255).to(torch.uint8)), "graph is corrupt"),
    "graph empty": (
        _tensor("graph", torch.zeros(0, dtype=torch.uint8)),
        r"uses operator sets \[\] where the metadata says 20",
    ),
    "graph external": (graph(_external), "its graph keeps tensor 'stolen' in another file"),
    "graph attribute external": (graph(_external_attribute), "keeps tensor 'stolen' in another"),
    "graph function": (graph(_function), "its graph holds functions"),
    "graph operator": (graph(_unknown_operator), "its graph is corrupt: No Op registered for Cnv"),
    "graph text": (graph(_no_text), "its graph is corrupt: 'utf-8' codec can't decode"),
    "graph input type": (graph(_untyped_input), "its graph is corrupt"),
    "graph cycle": (graph(_loop), "its graph is corrupt: Nodes in a graph must be topologically"),
    "graph short constant": (graph(_short_constant), "its graph is corrupt"),
    "graph huge constant": (graph(_huge_constant), "its graph is corrupt"),
}
