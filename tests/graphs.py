"""Small networks written twice: as ONNX nodes, and as PyTorch calls in float64.

The second form is an independent reference: it knows masks by the definition in the contract and
nothing of the compiler. `networks` draws random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mdprune_deploy import Checkpoint, Domain, Mask

OPSET = 20
EPSILON = 2.0**-10
"""Of all norms. Attributes are float32: a number that is exact there is the same in both forms."""
Tensor = torch.Tensor
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def mask(on: Sequence[object], axis: str = "in", site: str = "weight") -> Mask:
    """A switch per channel, from zeros and ones."""
    return Mask(torch.tensor([bool(c) for c in on]), axis, site)  # type: ignore[arg-type]


def masks_of(domain: Domain, name: str) -> list[Mask]:
    masks = domain.masks.get(name, [])
    return [masks] if isinstance(masks, Mask) else list(masks)


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or matrix product: its weight and how the weight is stored.

    Attributes:
        weight: The parameter that masks are on.
        source: The value that is read.
        kind: The ONNX operator.
        groups: Number of groups.
        channels: Input channels.
        filters: Output channels.
        operand: The value that is read as the weight, where that is not the parameter.
        part: The filters and channels of the parameter that are read; None for all.
    """

    weight: str
    source: str
    kind: str
    groups: int
    channels: int
    filters: int
    operand: str = ""
    part: tuple[slice, slice] | None = None

    @property
    def name(self) -> str:
        """What the compiler calls the weight."""
        return self.operand or self.weight

    def pairs(self, stored: np.ndarray) -> np.ndarray:
        """Reduces a stored weight to (filters, channels per group) by `any`."""
        flat = (stored != 0).reshape(*stored.shape[:2], -1).any(axis=2)
        if self.kind != "ConvTranspose":
            return flat.T if self.kind == "MatMul" else flat
        per_group = flat.reshape(self.groups, -1, flat.shape[1])
        return per_group.transpose(0, 2, 1).reshape(self.filters, -1)


@dataclass(eq=False)
class Run:
    """One evaluation: values by name, and the masked weights as leaves of the gradient."""

    domain: Domain
    values: dict[str, Tensor]
    weights: dict[Layer, Tensor] = field(default_factory=dict)


class Network:
    """A network under construction. Every method adds an operator and returns its output."""

    def __init__(self, seed: int = 0, shape: Sequence[int] = (3, 6, 6)) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.parameters: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.layers: list[Layer] = []
        self.outputs: list[str] = []
        self.tight = True  # no gradient is zero but where the structure says so
        self._steps: list[tuple[str, Callable[..., Tensor], tuple[str, ...]]] = []
        self._count = 0
        self.example = self.rng.standard_normal((1, *shape)).astype(np.float32)
        self._run = Run(Domain(), {"x": torch.from_numpy(self.example).double()})

    # The two forms of the whole network

    def checkpoint(self, **domains: Domain) -> Checkpoint:
        """The ONNX form with its domains, with a dynamic batch."""
        shape = ["batch", *self.example.shape[1:]]
        arrays = {**self.parameters, **self.constants}
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in self.outputs],
            [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        return Checkpoint(
            model=ir.from_proto(model),
            examples={"x": self.example},
            domains=domains,
            parameters=tuple(self.parameters),
            sites={layer.weight: layer.weight for layer in self.layers},
            dynamic_batch=True,
        )

    def run(self, domain: Domain, x: np.ndarray) -> Run:
        """The PyTorch form of one domain in float64."""
        run = Run(domain, {"x": torch.from_numpy(x).double()})
        for name, function, inputs in self._steps:
            run.values[name] = function(run, *(run.values[i] for i in inputs))
        return run

    def expected(self, domain: Domain, x: np.ndarray) -> list[np.ndarray]:
        """The outputs of one domain in float64."""
        values = self.run(domain, x).values
        return [values[name].detach().numpy() for name in self.outputs]

    def shape(self, x: str) -> tuple[int, ...]:
        return tuple(self._run.values[x].shape)

    def channels(self, x: str) -> int:
        return self.shape(x)[1]

    def mask_size(self, layer: Layer, axis: str) -> int:
        """The entries of a mask: channels of the whole weight where a layer reads a part."""
        if layer.part is not None:
            return self.parameters[layer.weight].shape[axis == "in"]
        return layer.channels if axis == "in" else layer.filters

    # Building

    def add_step(self, function: Callable[..., Tensor], inputs: Sequence[str], name: str) -> str:
        self._steps.append((name, function, tuple(inputs)))
        self._run.values[name] = function(self._run, *(self._run.values[i] for i in inputs))
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        function: Callable[..., Tensor],
        data: int = 1,
        **attributes: object,
    ) -> str:
        """Adds a node; `function(run, *data)` is its PyTorch form on the first `data` inputs."""
        name = self.fresh(op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return self.add_step(function, inputs[:data], name)

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def constant(self, array: object, dtype: str = "int64") -> str:
        name = self.fresh("constant")
        self.constants[name] = np.asarray(array, dtype=dtype)
        return name

    def parameter(self, name: str, array: np.ndarray) -> str:
        self.parameters[name] = array.astype(np.float32)
        return name

    def value(self, run: Run, name: str) -> Tensor:
        """A parameter in float64, or the domain's own."""
        own = run.domain.state.get(name)
        return torch.from_numpy(self.parameters[name]).double() if own is None else own.double()

    def _masked(
        self, run: Run, layer: Layer, made: Callable[[Run], Tensor] | None = None
    ) -> Tensor:
        """The weight times its masks, by the contract's definition, and of that the part read."""
        weight = self.value(run, layer.weight) if made is None else made(run)
        for m in masks_of(run.domain, layer.weight):
            if m.site == "output":
                continue
            on, g = m.on.double(), layer.groups
            stored_in_first = layer.kind in ("ConvTranspose", "MatMul")
            first = (m.axis == "in") == stored_in_first
            tail = [1] * (weight.ndim - 2)
            if first:
                weight = weight * on.reshape(-1, 1, *tail)
            else:
                split = weight.reshape(g, weight.shape[0] // g, *weight.shape[1:])
                weight = (split * on.reshape(g, 1, -1, *tail)).reshape(weight.shape)
        weight = weight if layer.part is None else weight[layer.part]
        run.weights[layer] = weight.detach().requires_grad_()
        return run.weights[layer]

    def _mask_output(self, run: Run, layer: Layer, y: Tensor) -> Tensor:
        for m in masks_of(run.domain, layer.weight):
            if m.site == "output":
                on = m.on.double() if layer.part is None else m.on.double()[layer.part[0]]
                y = y * on.reshape(-1, *[1] * (0 if layer.kind == "MatMul" else y.ndim - 2))
        return y

    def _layer(
        self,
        layer: Layer,
        call: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        bias: str | None,
        made: Callable[[Run], Tensor] | None = None,
    ) -> Callable[..., Tensor]:
        self.layers.append(layer)

        def function(run: Run, x: Tensor) -> Tensor:
            shift = None if bias is None else self.value(run, bias)
            return self._mask_output(run, layer, call(x, self._masked(run, layer, made), shift))

        return function

    # Layers

    def conv(
        self, x: str, filters: int, kernel: int = 3, stride: int = 1, pad: int | None = None,
        dilation: int = 1, groups: int = 1, bias: bool = True, shared: str | None = None,
    ) -> str:  # fmt: skip
        """A convolution; `shared` names the weight of an earlier one."""
        channels, rank = self.channels(x), len(self.shape(x)) - 2
        pad = (kernel // 2) * dilation if pad is None else pad
        name = shared or f"{self.fresh('conv')}.weight"
        fan_in = channels // groups * kernel**rank
        if shared is None:
            size = (filters, channels // groups, *[kernel] * rank)
            self.parameter(name, self.rng.standard_normal(size) * (2 / fan_in) ** 0.5)
        shift = None
        if bias:
            shift = f"{self.fresh('conv')}.bias"
            self.parameter(shift, self.rng.standard_normal(filters) * 0.5)
        layer = Layer(name, x, "Conv", groups, channels, filters)
        function = self._layer(
            layer,
            lambda x, w, b: _CONV[rank](x, w, b, stride, pad, dilation, groups),
            shift,
        )
        inputs = [x, name] + ([shift] if shift else [])
        return self.node(
            "Conv", inputs, function, kernel_shape=[kernel] * rank, strides=[stride] * rank,
            pads=[pad] * 2 * rank, dilations=[dilation] * rank, group=groups,
        )  # fmt: skip

    def conv_transpose(
        self, x: str, filters: int, kernel: int = 3, stride: int = 2, pad: int = 1,
        output_padding: int = 1, groups: int = 1, dilation: int = 1,
    ) -> str:  # fmt: skip
        channels, rank = self.channels(x), len(self.shape(x)) - 2
        name = f"{self.fresh('deconv')}.weight"
        size = (channels, filters // groups, *[kernel] * rank)
        self.parameter(name, self.rng.standard_normal(size) * (2 / channels / kernel) ** 0.5)
        shift = self.parameter(f"{name}.bias", self.rng.standard_normal(filters))
        layer = Layer(name, x, "ConvTranspose", groups, channels, filters)
        function = self._layer(
            layer,
            lambda x, w, b: _CONV_TRANSPOSE[rank](
                x, w, b, stride, pad, output_padding, groups, dilation
            ),
            shift,
        )
        return self.node(
            "ConvTranspose", [x, name, shift], function, kernel_shape=[kernel] * rank,
            strides=[stride] * rank, pads=[pad] * 2 * rank, group=groups,
            output_padding=[output_padding] * rank, dilations=[dilation] * rank,
        )  # fmt: skip

    def normalised_conv(self, x: str, filters: int) -> str:
        """A 3x3 convolution whose weight is `gain * v / |v|`, computed in the graph."""
        channels, rank = self.channels(x), len(self.shape(x)) - 2
        stem, axes = self.fresh("wn"), list(range(1, rank + 2))
        v = self.parameter(f"{stem}.v", self.rng.standard_normal((filters, channels, *[3] * rank)))
        gain = self.rng.uniform(0.5, 1.5, (filters, *[1] * (rank + 1)))
        g = self.parameter(f"{stem}.g", gain)
        norm, unit, weight = (self.fresh(kind) for kind in ("norm", "unit", "weight"))
        for op, inputs, output in (
            ("ReduceL2", [v, self.constant(axes)], norm),
            ("Div", [v, norm], unit),
            ("Mul", [unit, g], weight),
        ):
            self.nodes.append(helper.make_node(op, inputs, [output], name=output))

        def made(run: Run) -> Tensor:
            direction = self.value(run, v)
            length = (direction**2).sum(axes, keepdim=True).sqrt()
            return direction / length * self.value(run, g)

        layer = Layer(v, x, "Conv", 1, channels, filters, weight)
        function = self._layer(layer, lambda x, w, b: _CONV[rank](x, w, b, 1, 1), None, made)
        return self.node("Conv", [x, weight], function, pads=[1] * 2 * rank)

    def part_conv(self, x: str, whole: str, filters: slice, channels: slice) -> str:
        """A 3x3 convolution with a part of a parameter."""
        rank, part = len(self.shape(x)) - 2, self.fresh("part")
        bounds = [[s.start for s in (filters, channels)], [s.stop for s in (filters, channels)]]
        inputs = [whole, *(self.constant(numbers) for numbers in (*bounds, [0, 1]))]
        self.nodes.append(helper.make_node("Slice", inputs, [part], name=part))
        sizes = [s.stop - s.start for s in (channels, filters)]
        layer = Layer(whole, x, "Conv", 1, sizes[0], sizes[1], part, (filters, channels))
        function = self._layer(layer, lambda x, w, b: _CONV[rank](x, w, b, 1, 1), None)
        return self.node("Conv", [x, part], function, pads=[1] * 2 * rank)

    def product(self, x: str, filters: int) -> str:
        """`x @ W` over the last axis."""
        channels = self.shape(x)[-1]
        name = f"{self.fresh('mm')}.weight"
        self.parameter(name, self.rng.standard_normal((channels, filters)) * channels**-0.5)
        layer = Layer(name, x, "MatMul", 1, channels, filters)
        return self.node("MatMul", [x, name], self._layer(layer, lambda x, w, b: x @ w, None))

    def linear(self, x: str, filters: int) -> str:
        """A matrix product of a 2-D value."""
        channels = self.channels(x)
        name = f"{self.fresh('fc')}.weight"
        self.parameter(name, self.rng.standard_normal((filters, channels)) * channels**-0.5)
        shift = self.parameter(f"{name}.bias", self.rng.standard_normal(filters))
        layer = Layer(name, x, "Gemm", 1, channels, filters)
        return self.node("Gemm", [x, name, shift], self._layer(layer, F.linear, shift), transB=1)

    def bn(self, x: str) -> str:
        n = self.channels(x)
        stem = self.fresh("bn")
        arrays = (
            self.rng.uniform(0.5, 1.5, n), self.rng.standard_normal(n),
            self.rng.standard_normal(n) * 0.3, self.rng.uniform(0.5, 1.5, n),
        )  # fmt: skip
        names = [
            self.parameter(f"{stem}.{kind}", array)
            for kind, array in zip(("weight", "bias", "mean", "var"), arrays, strict=True)
        ]

        def function(run: Run, x: Tensor) -> Tensor:
            scale, shift, mean, var = (self.value(run, name) for name in names)
            return F.batch_norm(x, mean, var, scale, shift, False, 0.0, EPSILON)

        return self.node("BatchNormalization", [x, *names], function, epsilon=EPSILON)

    # Operators on one operand

    def act(self, x: str, kind: str = "Relu") -> str:
        if kind == "SiLU":
            gate = self.act(x, "Sigmoid")
            return self.mul(x, gate)
        if kind == "OneMinus":
            return self.one_minus(x)
        if kind == "HardSwish":
            return self.mul(x, self.scaled(self.clip(self.shifted(x, 3.0), 0.0, 6.0), 0.125))
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Elu": F.elu,
            "Softplus": F.softplus,
        }  # fmt: skip
        self.tight &= kind != "Relu"
        return self.node(kind, [x], lambda run, x: functions[kind](x))

    def one_minus(self, x: str) -> str:
        name = self.fresh("oneminus")
        one = self.constant(1.0, "float32")
        self.nodes.append(helper.make_node("Sub", [one, x], [name], name=name))
        return self.add_step(lambda run, x: 1 - x, [x], name)

    def scaled(self, x: str, factor: float) -> str:
        """Times a number that float32 holds exactly."""
        inputs = [x, self.constant(factor, "float32")]
        return self.node("Mul", inputs, lambda run, x: x * factor)

    def shifted(self, x: str, number: float) -> str:
        inputs = [x, self.constant(number, "float32")]
        return self.node("Add", inputs, lambda run, x: x + number)

    def clip(self, x: str, low: float, high: float) -> str:
        self.tight = False
        inputs = [x, self.constant(low, "float32"), self.constant(high, "float32")]
        return self.node("Clip", inputs, lambda run, x: x.clamp(low, high))

    def max_pool(self, x: str, kernel: int = 2, stride: int = 2, pad: int = 0) -> str:
        self.tight = False
        rank = len(self.shape(x)) - 2
        return self.node(
            "MaxPool", [x],
            lambda run, x: F.max_pool2d(x, kernel, stride, pad),
            kernel_shape=[kernel] * rank, strides=[stride] * rank, pads=[pad] * 2 * rank,
        )  # fmt: skip

    def avg_pool(
        self, x: str, kernel: int = 2, stride: int = 2, pad: int = 0, include_pad: bool = True
    ) -> str:
        rank = len(self.shape(x)) - 2
        return self.node(
            "AveragePool", [x],
            lambda run, x: F.avg_pool2d(x, kernel, stride, pad, False, include_pad),
            kernel_shape=[kernel] * rank, strides=[stride] * rank, pads=[pad] * 2 * rank,
            count_include_pad=int(include_pad),
        )  # fmt: skip

    def mean(self, x: str, axes: Sequence[int] = (), keep: bool = False) -> str:
        """Over space where no axes are named."""
        axes = list(axes) or list(range(2, len(self.shape(x))))
        inputs = [x, self.constant(axes)]
        return self.node(
            "ReduceMean", inputs, lambda run, x: x.mean(tuple(axes), keepdim=keep), keepdims=keep
        )

    def maximum(self, x: str, axis: int, keep: bool = False) -> str:
        self.tight = False
        inputs = [x, self.constant([axis])]
        return self.node(
            "ReduceMax", inputs, lambda run, x: x.amax(axis, keepdim=keep), keepdims=keep
        )

    def softmax(self, x: str, axis: int = 1) -> str:
        self.tight = False  # its outputs sum to one
        return self.node("Softmax", [x], lambda run, x: torch.softmax(x, axis), axis=axis)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """`shape` in ONNX's form: 0 copies, -1 infers."""

        def function(run: Run, x: Tensor) -> Tensor:
            return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])

        return self.node("Reshape", [x, self.constant(list(shape))], function)

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return self.node("Transpose", [x], lambda run, x: x.permute(*perm), perm=list(perm))

    def flatten(self, x: str) -> str:
        return self.node("Flatten", [x], lambda run, x: x.flatten(1), axis=1)

    def slice(self, x: str, start: int, end: int, step: int = 1, axis: int = 1) -> str:
        def function(run: Run, x: Tensor) -> Tensor:
            index = torch.from_numpy(np.arange(x.shape[axis])[start:end:step].copy())
            return x.index_select(axis, index)

        inputs = [x, *(self.constant([n]) for n in (start, end, axis, step))]
        return self.node("Slice", inputs, function)

    def gather(self, x: str, indices: Sequence[int], axis: int = 1) -> str:
        def function(run: Run, x: Tensor) -> Tensor:
            return x.index_select(axis, torch.tensor(indices))

        return self.node("Gather", [x, self.constant(list(indices))], function, axis=axis)

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        name = self.fresh("split")
        names = [f"{name}_{i}" for i in range(len(sizes))]
        self.nodes.append(
            helper.make_node("Split", [x, self.constant(list(sizes))], names, name=name, axis=1)
        )
        ends = np.cumsum(sizes).tolist()
        for part, size, end in zip(names, sizes, ends, strict=True):
            self.add_step(lambda run, x, start=end - size, end=end: x[:, start:end], [x], part)
        return names

    def tile(self, x: str, times: int) -> str:
        repeats = [1, times, *[1] * (len(self.shape(x)) - 2)]
        return self.node("Tile", [x, self.constant(repeats)], lambda run, x: x.repeat(*repeats))

    def pad(self, x: str, pads: Sequence[int], mode: str = "constant") -> str:
        """`pads` in ONNX's form: all begins, then all ends."""
        rank = len(pads) // 2
        torch_mode = {"edge": "replicate"}.get(mode, mode)

        def function(run: Run, x: Tensor) -> Tensor:
            pairs = [n for a in range(rank - 1, -1, -1) for n in (pads[a], pads[a + rank])]
            if mode != "constant":
                pairs = pairs[: 2 * (rank - 2)]
            return F.pad(x, pairs, mode=torch_mode)

        return self.node("Pad", [x, self.constant(list(pads))], function, mode=mode)

    def depth_to_space(self, x: str, block: int = 2) -> str:
        return self.node(
            "DepthToSpace", [x], lambda run, x: F.pixel_shuffle(x, block),
            blocksize=block, mode="CRD",
        )  # fmt: skip

    def space_to_depth(self, x: str, block: int = 2) -> str:
        def function(run: Run, x: Tensor) -> Tensor:
            y = F.pixel_unshuffle(x, block)  # channels as (c, phase); ONNX has (phase, c)
            b, n, h, w = y.shape
            return y.reshape(b, n // block**2, block**2, h, w).transpose(1, 2).reshape(b, n, h, w)

        return self.node("SpaceToDepth", [x], function, blocksize=block)

    def upsample(self, x: str, times: int = 2, mode: str = "nearest") -> str:
        scales = self.constant([1, 1, *[times] * (len(self.shape(x)) - 2)], "float32")
        options = {"nearest": {}, "linear": {"mode": "bilinear", "align_corners": False}}[mode]
        coordinates = {"nearest": "asymmetric", "linear": "half_pixel"}[mode]
        return self.node(
            "Resize", [x, "", scales],
            lambda run, x: F.interpolate(x, scale_factor=times, **options),
            mode=mode, coordinate_transformation_mode=coordinates, nearest_mode="floor",
        )  # fmt: skip

    def instance_norm(self, x: str) -> str:
        self.tight = False  # its mean is known
        n = self.channels(x)
        stem = self.fresh("in")
        scale = self.parameter(f"{stem}.weight", self.rng.uniform(0.5, 1.5, n))
        shift = self.parameter(f"{stem}.bias", self.rng.standard_normal(n))

        def function(run: Run, x: Tensor) -> Tensor:
            weight, bias = self.value(run, scale), self.value(run, shift)
            return F.instance_norm(x, None, None, weight, bias, True, 0.0, EPSILON)

        return self.node("InstanceNormalization", [x, scale, shift], function, epsilon=EPSILON)

    def layer_norm(self, x: str, axis: int = -1) -> str:
        self.tight = False
        shape = self.shape(x)[axis:]
        stem = self.fresh("ln")
        scale = self.parameter(f"{stem}.weight", self.rng.uniform(0.5, 1.5, shape))
        shift = self.parameter(f"{stem}.bias", self.rng.standard_normal(shape))

        def function(run: Run, x: Tensor) -> Tensor:
            return F.layer_norm(x, shape, self.value(run, scale), self.value(run, shift), EPSILON)

        return self.node(
            "LayerNormalization", [x, scale, shift], function, axis=axis, epsilon=EPSILON
        )

    def lrn(self, x: str, size: int = 3) -> str:
        self.tight = False  # reads its window only; the compiler keeps all channels
        return self.node(
            "LRN", [x], lambda run, x: F.local_response_norm(x, size, 0.125, 0.75, 1.0),
            size=size, alpha=0.125, beta=0.75, bias=1.0,
        )  # fmt: skip

    # Operators on several operands

    def add(self, a: str, b: str) -> str:
        return self.node("Add", [a, b], lambda run, a, b: a + b, 2)

    def mul(self, a: str, b: str) -> str:
        return self.node("Mul", [a, b], lambda run, a, b: a * b, 2)

    def matmul(self, a: str, b: str) -> str:
        return self.node("MatMul", [a, b], lambda run, a, b: a @ b, 2)

    def concat(self, parts: Sequence[str], axis: int = 1) -> str:
        return self.node(
            "Concat", parts, lambda run, *parts: torch.cat(parts, axis), len(parts), axis=axis
        )

    def zeros_like(self, x: str, channels: int) -> str:
        """Zeros of the batch and space of `x`, of the shape that is computed at run time."""
        shape, batch, rest, zeros = (self.fresh("zeros") for _ in range(4))
        sizes = self.constant([channels, *self.shape(x)[2:]])
        for op, inputs, output, attributes in (
            ("Shape", [x], batch, {"start": 0, "end": 1}),
            ("Concat", [batch, sizes], shape, {"axis": 0}),
            ("ConstantOfShape", [shape], zeros, {}),
        ):
            self.nodes.append(helper.make_node(op, inputs, [output], name=rest + op, **attributes))
        return self.add_step(
            lambda run, x: x.new_zeros(x.shape[0], channels, *x.shape[2:]), [x], zeros
        )

    # Common blocks

    def group_norm(self, x: str, groups: int) -> str:
        """As exporters write it: instance norm of the reshaped value, then scale and shift."""
        self.tight = False
        shape = self.shape(x)
        ones = self.constant(np.ones(groups), "float32")
        zeros = self.constant(np.zeros(groups), "float32")
        folded = self.reshape(x, [0, groups, -1])
        normal = self.node(
            "InstanceNormalization", [folded, ones, zeros],
            lambda run, x: F.instance_norm(x, eps=EPSILON), epsilon=EPSILON,
        )  # fmt: skip
        y = self.reshape(normal, [0, *shape[1:]])
        stem = self.fresh("gn")
        tail = [1] * (len(shape) - 2)
        scale = self.parameter(f"{stem}.weight", self.rng.uniform(0.5, 1.5, (shape[1], *tail)))
        shift = self.parameter(f"{stem}.bias", self.rng.standard_normal((shape[1], *tail)))
        y = self.node("Mul", [y, scale], lambda run, y: y * self.value(run, scale))
        return self.node("Add", [y, shift], lambda run, y: y + self.value(run, shift))

    def shuffle(self, x: str, groups: int) -> str:
        shape = self.shape(x)
        tail = list(range(3, len(shape) + 1))
        y = self.reshape(x, [0, groups, shape[1] // groups, *shape[2:]])
        return self.reshape(self.transpose(y, [0, 2, 1, *tail]), [0, *shape[1:]])

    def channel_norm(self, x: str) -> str:
        """Layer norm over the channels of a channels-first value, as its formula."""
        self.tight = False
        centred = self.node("Sub", [x, self.mean(x, [1], keep=True)], lambda run, a, b: a - b, 2)
        spread = self.mean(self.mul(centred, centred), [1], keep=True)
        deviation = self.node("Sqrt", [self.shifted(spread, EPSILON)], lambda run, x: x.sqrt())
        y = self.node("Div", [centred, deviation], lambda run, a, b: a / b, 2)
        stem, shape = self.fresh("cn"), (self.channels(x), *[1] * (len(self.shape(x)) - 2))
        scale = self.parameter(f"{stem}.weight", self.rng.uniform(0.5, 1.5, shape))
        shift = self.parameter(f"{stem}.bias", self.rng.standard_normal(shape))
        y = self.node("Mul", [y, scale], lambda run, y: y * self.value(run, scale))
        return self.node("Add", [y, shift], lambda run, y: y + self.value(run, shift))

    def unsqueeze(self, x: str, axis: int) -> str:
        inputs = [x, self.constant([axis])]
        return self.node("Unsqueeze", inputs, lambda run, x: x.unsqueeze(axis))

    def squeeze_excite(self, x: str, width: int = 2) -> str:
        y = self.act(self.conv(self.mean(x, keep=True), width, 1), "Tanh")
        return self.mul(x, self.act(self.conv(y, self.channels(x), 1), "Sigmoid"))

    def conv_bn_act(self, x: str, filters: int, act: str = "Relu", **options: int) -> str:
        return self.act(self.bn(self.conv(x, filters, bias=False, **options)), act)

    def head(self, x: str, classes: int = 3) -> str:
        """Global pooling and a linear layer as an output."""
        y = self.linear(self.mean(x), classes)
        self.outputs.append(y)
        return y


# Random networks


@dataclass(frozen=True, repr=False)
class Drawn:
    """A random network with its domains."""

    network: Network
    domains: dict[str, Domain]

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        printer.text(self.text())  # type: ignore[attr-defined]

    def text(self) -> str:
        """The nodes, the masks and what each domain owns, a line each."""
        lines = [f"{n.op_type}({', '.join(n.input)}) -> {', '.join(n.output)}"
                 for n in self.network.nodes]  # fmt: skip
        for name, domain in self.domains.items():
            for key in domain.masks:
                for m in masks_of(domain, key):
                    bits = "".join(str(int(b)) for b in m.on)
                    lines.append(f"{name}: {key} {m.axis} {m.site} {bits}")
            lines += [f"{name}: own {key}" for key in domain.state]
        return "\n".join([*lines, f"outputs {self.network.outputs}, seed {self.network.seed}"])


ACTS = ("Relu", "Sigmoid", "Tanh", "SiLU", "Elu", "OneMinus", "Softplus", "HardSwish")


def _plain(n: Network, x: str, draw: Callable) -> str:
    options = draw(st.sampled_from([
        {"kernel": 1}, {"kernel": 3}, {"kernel": 3, "pad": 0}, {"kernel": 3, "dilation": 2},
        {"kernel": 3, "stride": 2}, {"kernel": 2, "stride": 2, "pad": 0},
        {"kernel": 3, "groups": 2}, {"kernel": 1, "groups": 4},
    ]))  # fmt: skip
    filters = draw(st.sampled_from([4, 8]))
    return n.conv_bn_act(x, filters, draw(st.sampled_from(ACTS)), **options)


def _biased(n: Network, x: str, draw: Callable) -> str:
    return n.act(n.conv(x, n.channels(x), 3), draw(st.sampled_from(ACTS)))


def _depthwise(n: Network, x: str, draw: Callable) -> str:
    times = draw(st.sampled_from([1, 2]))
    groups = n.channels(x)
    y = n.conv_bn_act(x, groups * times, groups=groups)
    return n.bn(n.conv(y, draw(st.sampled_from([4, 8])), 1))


def _residual(n: Network, x: str, draw: Callable) -> str:
    y = n.bn(n.conv(n.conv_bn_act(x, 4), n.channels(x)))
    return n.act(n.add(y, x), draw(st.sampled_from(ACTS)))


def _preactivation(n: Network, x: str, draw: Callable) -> str:
    y = n.conv(n.act(n.bn(x)), n.channels(x), draw(st.sampled_from([1, 3])), bias=False)
    return n.add(x, y)


def _padded_shortcut(n: Network, x: str, draw: Callable) -> str:
    channels = n.channels(x)
    y = n.bn(n.conv(x, 2 * channels, stride=2, bias=False))
    space = range(2, len(n.shape(x)))
    for axis in space:
        x = n.slice(x, 0, n.shape(x)[axis], 2, axis)
    pads = [0, channels // 2, *[0] * len(space)]
    return n.act(n.add(y, n.pad(x, pads * 2)))


def _zero_shortcut(n: Network, x: str, draw: Callable) -> str:
    channels = n.channels(x)
    y = n.bn(n.conv(x, channels + 4, bias=False))
    return n.act(n.add(n.concat([x, n.zeros_like(x, 4)]), y))


def _dense(n: Network, x: str, draw: Callable) -> str:
    return n.concat([x, n.conv_bn_act(x, 4)])


def _two_branches(n: Network, x: str, draw: Callable) -> str:
    left, right = n.conv_bn_act(x, 4), n.conv(x, 4, 1)
    join = draw(st.sampled_from(["add", "mul", "concat"]))
    return n.concat([left, right]) if join == "concat" else getattr(n, join)(left, right)


def _split(n: Network, x: str, draw: Callable) -> str:
    half = n.channels(x) // 2
    left, right = n.split(x, [half, n.channels(x) - half])
    return n.concat([n.conv_bn_act(left, 4), right, left])


def _slices(n: Network, x: str, draw: Callable) -> str:
    c = n.channels(x)
    parts = [n.slice(x, 0, c - 1), n.slice(x, 1, c, 2), n.gather(x, [c - 1, 0, c - 1])]
    return n.conv(n.concat(parts), 4, 1)


def _shuffle(n: Network, x: str, draw: Callable) -> str:
    return n.conv_bn_act(n.shuffle(x, 2), 4, groups=2)


def _squeeze(n: Network, x: str, draw: Callable) -> str:
    return n.squeeze_excite(x)


def _spatial_gate(n: Network, x: str, draw: Callable) -> str:
    pooled = n.concat([n.mean(x, [1], keep=True), n.maximum(x, 1, keep=True)])
    return n.mul(x, n.act(n.conv(pooled, 1), "Sigmoid"))


def _maxout(n: Network, x: str, draw: Callable) -> str:
    _, c, *space = n.shape(x)
    if draw(st.booleans()):
        y = n.maximum(n.reshape(x, [0, c // 2, 2, *space]), 2)
    else:
        y = n.maximum(n.reshape(x, [0, 2, c // 2, *space]), 1)
    return n.conv(y, 4, 1)


def _stack(n: Network, x: str, draw: Callable) -> str:
    """Two branches on an axis of their own: summed, or flattened into the channels again."""
    axis = draw(st.sampled_from([1, 2]))
    branches = [n.conv_bn_act(x, 4), n.conv(x, 4, 1)]
    y = n.concat([n.unsqueeze(branch, axis) for branch in branches], axis)
    if draw(st.booleans()):
        return n.mean(y, [axis])
    return n.conv(n.reshape(y, [0, 8, *n.shape(x)[2:]]), 4, 1)


def _space(n: Network, x: str, draw: Callable) -> str:
    if n.shape(x)[2] % 2 == 0 and n.shape(x)[3] % 2 == 0 and draw(st.booleans()):
        return n.conv_bn_act(n.space_to_depth(x), 8, kernel=1)
    return n.conv(n.depth_to_space(x), 4)


def _reshaped_space(n: Network, x: str, draw: Callable) -> str:
    """Pixel shuffle and unshuffle as exporters write them, by reshapes and a transposition."""
    _, c, h, w = n.shape(x)
    if h % 2 == 0 and w % 2 == 0 and draw(st.booleans()):
        y = n.reshape(x, [0, c, h // 2, 2, w // 2, 2])
        y = n.reshape(n.transpose(y, [0, 1, 3, 5, 2, 4]), [0, 4 * c, h // 2, w // 2])
        return n.conv(y, 8, 1)
    y = n.reshape(x, [0, c // 4, 2, 2, h, w])
    return n.conv(n.reshape(n.transpose(y, [0, 1, 4, 2, 5, 3]), [0, c // 4, 2 * h, 2 * w]), 4)


def _scales(n: Network, x: str, draw: Callable) -> str:
    """Two resolutions that exchange and meet, as in U-Nets and HRNets."""
    if n.shape(x)[2] % 2 or n.shape(x)[3] % 2:
        return n.conv_bn_act(x, 8)
    low = n.conv_bn_act(n.max_pool(x), 8)
    high = n.add(n.conv(x, 8, 1), n.upsample(n.conv(low, 8, 1)))
    low = n.add(low, n.conv(x, 8, stride=2))
    return n.concat([n.act(high), n.upsample(low, mode="linear")])


def _pool(n: Network, x: str, draw: Callable) -> str:
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return n.max_pool(x, 3, 2, 1)
    if kind in (1, 2):
        return n.avg_pool(x, 3, 2, 1, include_pad=kind == 1)
    return n.upsample(x, mode="nearest" if kind == 3 else "linear")


def _padded(n: Network, x: str, draw: Callable) -> str:
    mode = draw(st.sampled_from(["constant", "reflect", "edge"]))
    return n.conv(n.pad(x, [0, 0, 1, 1, 0, 0, 1, 1], mode), 4, pad=0)


def _transposed(n: Network, x: str, draw: Callable) -> str:
    options = draw(st.sampled_from([
        {}, {"groups": 2}, {"dilation": 2}, {"stride": 1, "output_padding": 0},
        {"kernel": 2, "pad": 0, "output_padding": 0},
    ]))  # fmt: skip
    return n.act(n.conv_transpose(x, 4, **options))


def _norm(n: Network, x: str, draw: Callable) -> str:
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return n.group_norm(x, 2)
    if kind == 1:
        return n.instance_norm(x)
    if kind == 2:
        last = len(n.shape(x)) - 1
        y = n.layer_norm(n.transpose(x, [0, *range(2, last + 1), 1]))
        return n.transpose(y, [0, last, *range(1, last)])
    if kind == 3:
        return n.channel_norm(x)
    return n.softmax(x) if kind == 4 else n.lrn(x)


def _normalised(n: Network, x: str, draw: Callable) -> str:
    return n.act(n.normalised_conv(x, 8), draw(st.sampled_from(ACTS)))


def _octave(n: Network, x: str, draw: Callable) -> str:
    """Convolutions with parts of one weight, which overlap and leave a part unread."""
    c, rank = n.channels(x), len(n.shape(x)) - 2
    whole = f"{n.fresh('octave')}.weight"
    n.parameter(whole, n.rng.standard_normal((8, c, *[3] * rank)) / c)
    high, low = n.slice(x, 0, c // 2), n.slice(x, c // 2, c)
    y = n.add(n.part_conv(high, whole, slice(0, 4), slice(0, c // 2)),
              n.part_conv(low, whole, slice(0, 4), slice(c // 2, c)))  # fmt: skip
    return n.concat([n.act(y), n.part_conv(high, whole, slice(3, 7), slice(0, c // 2))])


def _block_attention(n: Network, x: str, draw: Callable) -> str:
    """CBAM: channels gated by both poolings through one pair of layers, then places."""
    gates, shared = [], {}
    for pooled in (n.mean(x, keep=True), n.maximum(n.maximum(x, 2, keep=True), 3, keep=True)):
        y = n.act(n.conv(pooled, 4, 1, bias=False, shared=shared.get("reduce")))
        shared.setdefault("reduce", n.layers[-1].weight)
        gates.append(n.conv(y, n.channels(x), 1, bias=False, shared=shared.get("expand")))
        shared.setdefault("expand", n.layers[-1].weight)
    return _spatial_gate(n, n.mul(x, n.act(n.add(*gates), "Sigmoid")), draw)


def _gram(n: Network, x: str, draw: Callable) -> str:
    """Products of channels, averaged over places: an image of one column."""
    c, places = n.channels(x), int(np.prod(n.shape(x)[2:]))
    rows = n.reshape(x, [0, c, places])
    gram = n.scaled(n.matmul(rows, n.transpose(rows, [0, 2, 1])), 2.0**-5)
    return n.upsample(n.upsample(n.conv(n.reshape(gram, [0, c, c, 1]), 8, 1)))


def _twice(n: Network, x: str, draw: Callable) -> str:
    y = n.act(n.conv(x, n.channels(x), bias=False), "Sigmoid")
    return n.conv(y, n.channels(x), shared=n.layers[-1].weight)


def _attention(n: Network, x: str, draw: Callable) -> str:
    _, c, h, w = n.shape(x)
    tokens = n.reshape(x, [0, c, h * w])
    keys = n.transpose(tokens, [0, 2, 1])
    scores = n.softmax(n.node("Mul", [n.matmul(keys, tokens), n.constant(0.1, "float32")],
                              lambda run, x: x * float(np.float32(0.1))), -1)  # fmt: skip
    return n.reshape(n.matmul(tokens, n.transpose(scores, [0, 2, 1])), [0, c, h, w])


def _heads(n: Network, x: str, draw: Callable) -> str:
    """Multi-head attention: linear layers on tokens, two heads, a residual."""
    _, c, h, w = n.shape(x)
    tokens = n.transpose(n.reshape(x, [0, c, h * w]), [0, 2, 1])
    query, key, value = (
        n.transpose(n.reshape(n.product(tokens, 8), [0, h * w, 2, 4]), [0, 2, 1, 3])
        for _ in range(3)
    )
    scores = n.softmax(n.scaled(n.matmul(query, n.transpose(key, [0, 1, 3, 2])), 0.0625), -1)
    y = n.reshape(n.transpose(n.matmul(scores, value), [0, 2, 1, 3]), [0, h * w, 8])
    y = n.add(tokens, n.product(y, c))
    return n.reshape(n.transpose(y, [0, 2, 1]), [0, c, h, w])


def _tiled(n: Network, x: str, draw: Callable) -> str:
    return n.conv(n.tile(x, 2), 4, 1)


BLOCKS = (
    _plain, _plain, _biased, _depthwise, _residual, _residual, _preactivation, _padded_shortcut,
    _zero_shortcut, _dense, _two_branches, _split, _slices, _shuffle, _squeeze, _maxout, _stack,
    _transposed, _norm, _twice, _tiled, _normalised, _octave,
)  # fmt: skip
"""For values of any rank."""
IMAGE_BLOCKS = (
    *BLOCKS, _spatial_gate, _block_attention, _space, _reshaped_space, _scales, _pool, _padded,
    _gram, _attention, _heads,
)  # fmt: skip


@st.composite
def networks(draw: Callable) -> Drawn:
    """Draws a network of one to five blocks, one to three outputs, and one to three domains."""
    shape = draw(st.sampled_from([(3, 6, 6)] * 6 + [(3, 12), (3, 4, 4, 4)]))
    network = Network(draw(st.integers(0, 2**16)), shape)
    blocks = IMAGE_BLOCKS if len(shape) == 3 else BLOCKS
    x = network.conv_bn_act("x", 8, draw(st.sampled_from(ACTS)))
    taps = [x]
    for block in draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=5)):
        space = network.shape(x)[2:]
        if min(space) < 3 or max(space) > 12 or np.prod(space) > 144:
            break
        if network.channels(x) > 16 or network.channels(x) % 4:
            x = network.conv(x, 8, 1)
        x = block(network, x, draw)
        taps.append(x)
    _end(network, x, draw)
    for _ in range(draw(st.integers(0, 2))):
        network.head(draw(st.sampled_from(taps)))
    if draw(st.integers(0, 4)) == 4:
        network.outputs.append(network.conv(draw(st.sampled_from(taps)), 2, 1))
    return Drawn(network, _domains(network, draw))


def _end(network: Network, x: str, draw: Callable) -> None:
    """Adds the last head: on pooled channels, or on all places in one of two layouts."""
    kind = draw(st.integers(0, 3))
    if kind < 2 or np.prod(network.shape(x)) >= 600:
        network.head(x)
        return
    if kind == 3:
        x = network.transpose(x, [0, *range(2, len(network.shape(x))), 1])
    network.outputs.append(network.linear(network.flatten(x), 3))


def _domains(network: Network, draw: Callable) -> dict[str, Domain]:
    """Draws domains; the last may keep what the first drops."""
    names = [f"d{i}" for i in range(draw(st.integers(1, 3)))]
    domains = {name: _domain(network, draw) for name in names}
    if len(names) > 1 and draw(st.booleans()):
        opposite = {
            key: [Mask(~m.on, m.axis, m.site) for m in masks_of(domains[names[0]], key)]
            for key in domains[names[0]].masks
        }
        domains[names[-1]] = Domain(opposite, domains[names[-1]].state)
    return domains


def _domain(network: Network, draw: Callable) -> Domain:
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    chosen: dict[str, list[Mask]] = {}
    for layer in {layer.weight: layer for layer in network.layers}.values():
        for axis, site in draw(st.sampled_from(MASKED)):
            size = network.mask_size(layer, axis)
            if layer.source == "x" and axis == "in":
                continue
            on = rng.random(size) < draw(st.sampled_from([0.5, 0.5, 0.8, 0.2, 0.0]))
            chosen.setdefault(layer.weight, []).append(mask(on, axis, site))
    state = {}
    for name in network.parameters:
        if draw(st.integers(0, 9)) == 9:
            array = network.parameters[name]
            noise = rng.uniform(0.5, 1.5, array.shape)
            state[name] = torch.from_numpy((array * noise).astype(np.float32))
    return Domain(chosen, state)


MASKED: tuple[tuple[tuple[str, str], ...], ...] = (
    (), (("in", "weight"),), (("in", "weight"),), (("out", "weight"),), (("out", "output"),),
    (("in", "weight"), ("out", "weight")), (("in", "weight"), ("out", "output")),
    (("in", "weight"), ("in", "weight")), (("out", "weight"), ("out", "output")),
)  # fmt: skip
