"""Executes a native plan with NumPy: the independent reading of docs/native-format.md in tests.

Nothing here is shared with the lowering but the plan's data classes. Every write is checked to be
of the tensor's whole memory where the operator says so, and the arena is one array, so that
activations that overlap in time destroy each other here as they would in the runtime.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mdprune_deploy.emit.native.operators import (
    Activation,
    Affine,
    Binary,
    Convolution,
    Depthwise,
    Fill,
    Function,
    Gather,
    Interpolate,
    MatMul,
    Move,
    Normalize,
    Operator,
    Pool,
    Reduce,
    Select,
    Softmax,
    Unary,
)
from mdprune_deploy.emit.native.plan import Place, Plan, Tensor, Type


class Interpreter:
    """Runs a plan; activations in `dtype`, constants as they are stored."""

    def __init__(self, plan: Plan, folder: Path, dtype: type = np.float32) -> None:
        self.plan = plan
        self.folder = folder
        self.dtype = dtype
        self._constants: dict[int, np.ndarray] = {}

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        if not self.plan.dynamic_batch:
            return self._run(inputs)
        images = [self._run([x[i : i + 1] for x in inputs]) for i in range(len(inputs[0]))]
        return [np.concatenate(parts) for parts in zip(*images, strict=True)]

    def _run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._arena = np.full(self.plan.arena // 4, np.nan, dtype=self.dtype)
        self._inputs = [np.array(x, dtype=self.dtype, order="C") for x in inputs]
        for x, port in zip(self._inputs, self.plan.inputs, strict=True):
            assert x.shape == self.plan.tensors[port.tensor].shape
        self._outputs = [
            np.full(self.plan.tensors[port.tensor].shape, np.nan, dtype=self.dtype)
            for port in self.plan.outputs
        ]
        for operator in self.plan.operators:
            self._check_overlaps(operator)
            with np.errstate(all="ignore"):
                RUN[type(operator)](self, operator)
        return [y.copy() for y in self._outputs]

    def get(self, number: int) -> np.ndarray:
        tensor = self.plan.tensors[number]
        if tensor.place in (Place.DATA, Place.WEIGHTS):
            if number not in self._constants:
                array = self.plan.constant(number, self.folder)
                self._constants[number] = (
                    array.astype(self.dtype) if tensor.type is Type.F32 else array
                )
            return self._constants[number]
        return self._flat(tensor).reshape(tensor.shape)

    def _flat(self, tensor: Tensor) -> np.ndarray:
        assert tensor.type is Type.F32
        match tensor.place:
            case Place.ARENA:
                assert tensor.offset % 4 == 0
                start = tensor.offset // 4
                assert start + tensor.elements <= len(self._arena), "a tensor leaves the arena"
                return self._arena[start : start + tensor.elements]
            case Place.INPUT:
                return self._inputs[tensor.offset].reshape(-1)
            case Place.OUTPUT:
                return self._outputs[tensor.offset].reshape(-1)
        raise AssertionError("a constant is no activation")

    def put(self, number: int, array: np.ndarray) -> None:
        tensor = self.plan.tensors[number]
        assert tensor.place in (Place.ARENA, Place.OUTPUT), "only activations are written"
        assert array.shape == tensor.shape, f"{array.shape} is written to {tensor.shape}"
        self._flat(tensor)[:] = array.reshape(-1)

    def scales(self, number: int | None, default: float) -> np.ndarray | float:
        return default if number is None else self.get(number)

    def index(self, number: int, size: int) -> np.ndarray:
        array = self.get(number)
        assert array.dtype == np.int32
        assert array.min() >= 0
        assert array.max() < size
        return array

    def _check_overlaps(self, operator: Operator) -> None:
        """An output overlaps no input and no other output, but where the format says so."""
        tensors = self.plan.tensors
        allowed = set(operator.may_replace())
        for y in operator.writes():
            for other in (*operator.reads(), *(o for o in operator.writes() if o != y)):
                a, b = tensors[y], tensors[other]
                if a.place is not b.place or a.place not in (Place.ARENA, Place.OUTPUT):
                    continue
                if a.place is Place.OUTPUT:
                    meet = a.offset == b.offset
                else:
                    meet = a.offset < b.offset + 4 * b.elements and (
                        b.offset < a.offset + 4 * a.elements
                    )
                if meet:
                    assert other in allowed, f"{operator} overlaps"
                    assert (a.offset, a.shape) == (b.offset, b.shape)


def activate(activation: Activation, x: np.ndarray) -> np.ndarray:
    function, a, b = activation
    match function:
        case Function.IDENTITY:
            return x
        case Function.RELU:
            return np.maximum(x, 0)
        case Function.CLIP:
            return np.minimum(np.maximum(x, a), b)
        case Function.LEAKY_RELU:
            return np.where(x < 0, a * x, x)
        case Function.SIGMOID:
            return 1 / (1 + np.exp(-x))
        case Function.SILU:
            return x / (1 + np.exp(-x))
        case Function.HARD_SIGMOID:
            return np.clip(a * x + b, 0, 1)
        case Function.HARD_SWISH:
            return x * np.clip(x / 6 + 0.5, 0, 1)
        case Function.TANH:
            return np.tanh(x)
        case Function.GELU:
            return x * 0.5 * (1 + _erf(x / np.sqrt(2.0)))
        case Function.GELU_TANH:
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        case Function.ELU:
            return np.where(x < 0, a * np.expm1(x), x)
        case Function.SOFTPLUS:
            return np.logaddexp(x, 0)
        case Function.MISH:
            return x * np.tanh(np.logaddexp(x, 0))
        case Function.EXP:
            return np.exp(x)
        case Function.LOG:
            return np.log(x)
        case Function.SQRT:
            return np.sqrt(x)
        case Function.RECIPROCAL:
            return 1 / x
        case Function.NEGATE:
            return -x
        case Function.ABSOLUTE:
            return np.abs(x)
        case Function.ERF:
            return _erf(x)
        case Function.SIGN:
            return np.sign(x)
        case Function.FLOOR:
            return np.floor(x)
        case Function.CEIL:
            return np.ceil(x)
        case Function.ROUND:
            return np.rint(x)
        case Function.SIN:
            return np.sin(x)
        case Function.COS:
            return np.cos(x)
        case Function.SOFTSIGN:
            return x / (1 + np.abs(x))
        case Function.SQUARE:
            return x * x
        case Function.SELU:
            return b * np.where(x < 0, a * np.expm1(x), x)
        case Function.NOT:
            return (x == 0).astype(x.dtype)
        case Function.CELU:
            return np.maximum(x, 0) + np.minimum(0, a * np.expm1(x / a))
        case Function.THRESHOLDED_RELU:
            return np.where(x > a, x, 0)


def _erf(x: np.ndarray) -> np.ndarray:
    return torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def _windows(
    operator: Convolution | Depthwise | Pool, x: np.ndarray, out: Sequence[int]
) -> np.ndarray:
    """The input at every output position and tap, NaN outside; `(N, out..., taps, C)`."""
    spatial = operator.spatial
    kernel, stride, dilation, pad = (
        value[3 - spatial :]
        for value in (operator.kernel, operator.stride, operator.dilation, operator.pad)
    )
    result = np.full((x.shape[0], *out, int(np.prod(kernel)), x.shape[-1]), np.nan, dtype=x.dtype)
    for tap, offsets in enumerate(itertools.product(*map(range, kernel))):
        places = [
            np.arange(size) * s + t * d - p
            for size, s, d, p, t in zip(out, stride, dilation, pad, offsets, strict=True)
        ]
        inside = [
            (place >= 0) & (place < size) for place, size in zip(places, x.shape[1:-1], strict=True)
        ]
        source = x[(slice(None), *np.ix_(*(p[i] for p, i in zip(places, inside, strict=True))))]
        target = np.ix_(*(np.flatnonzero(i) for i in inside))
        result[(slice(None), *target, tap)] = source
    return result


def _weight(run: Interpreter, operator: Convolution, filters: int) -> np.ndarray:
    """The weight as `(groups, filters per group, R, taps)`."""
    per_group = filters // operator.groups
    if operator.form == 1:
        assert len(operator.weights) == 1
        packed = run.get(operator.weights[0][0])
        groups, blocks, taps, channels, block = packed.shape
        assert (groups, block) == (operator.groups, 16)
        assert blocks == -(-per_group // 16)
        flat, panels, count = packed.reshape(groups, -1), [], -(-blocks // 4)
        for panel in range(count):  # of at most four blocks, the first ones wider
            width = 16 * (blocks // count + (panel < blocks % count))
            rows, flat = np.split(flat, [width * taps * channels], axis=1)
            panels.append(rows.reshape(groups, taps, channels, width).transpose(0, 3, 2, 1))
        whole = np.concatenate(panels, axis=1)
        assert not whole[:, per_group:].any()
        return whole[:, :per_group]
    assert operator.groups == 1
    rows: list[np.ndarray] = []
    missing = np.zeros(filters, dtype=bool)
    for weight, bits, row_bits, output_bits in operator.weights:
        slab = run.get(weight)
        slab = slab[:, :, _bit_set(run, bits, slab.shape[2])]
        slab = slab[:, _bit_set(run, row_bits, slab.shape[1])]
        outputs = _bit_set(run, output_bits, filters)
        assert slab.shape[2] == outputs.sum() and slab.shape[1] > 0
        if missing.any():
            assert output_bits is not None and not (outputs & ~missing).any()
            assert slab.shape[1] == rows[-1].shape[1]
        else:
            rows.append(np.zeros((*slab.shape[:2], filters)))
            missing[:] = True
        rows[-1][:, :, outputs] = slab
        missing &= ~outputs
    assert not missing.any()
    return np.concatenate(rows, axis=1).transpose(2, 1, 0)[None]


def _bit_set(run: Interpreter, bits: int | None, stored: int) -> np.ndarray:
    if bits is None:
        return np.ones(stored, dtype=bool)
    words = run.get(bits)
    assert len(words) == -(-stored // 32)
    every = [bool(words[j // 32] >> (j % 32) & 1) for j in range(32 * len(words))]
    assert not any(every[stored:])
    return np.array(every[:stored])


def _end(run: Interpreter, operator: Convolution | Depthwise, acc: np.ndarray) -> None:
    v = acc * run.scales(operator.scale, 1.0) + run.scales(operator.shift, 0.0)
    if operator.residual is not None:
        residual = run.get(operator.residual)
        if isinstance(operator, Convolution) and operator.residual_index is not None:
            residual = residual[..., run.index(operator.residual_index, residual.shape[-1])]
        assert residual.shape == v.shape
        v = v + residual
    y = activate(operator.activation, v)
    run.put(operator.y, y)
    if isinstance(operator, Convolution) and operator.y2 is not None:
        second = y * run.scales(operator.scale2, 1.0) + run.scales(operator.shift2, 0.0)
        run.put(operator.y2, activate(operator.activation2, second))


def _convolution(run: Interpreter, operator: Convolution) -> None:
    x, shape = run.get(operator.x), run.plan.tensors[operator.y].shape
    filters = shape[-1]
    weight = _weight(run, operator, operator.filters)
    behind = filters - operator.filters  # nobody reads these
    assert behind >= 0 and -(-filters // 16) == -(-operator.filters // 16)
    assert behind == 0 or operator.groups == 1
    padding = ((0, 0), (0, behind), (0, 0), (0, 0))
    weight = np.pad(weight, padding, constant_values=np.nan)
    groups, per_group, channels, taps = weight.shape
    for ones in (operator.kernel, operator.stride, operator.dilation):
        assert all(value == 1 for value in ones[: 3 - operator.spatial])
    assert taps == int(np.prod(operator.kernel))
    index = np.arange(x.shape[-1])
    if operator.index is not None:
        index = run.index(operator.index, x.shape[-1])
    assert len(index) == groups * channels
    x = x[..., index]
    if operator.transposed:
        acc = _transposed(operator, x, weight, shape)
    else:
        if operator.spatial == 0:
            parts = x[..., None, :]
        else:
            parts = np.nan_to_num(_windows(operator, x, shape[1:-1]))
        acc = np.empty(shape, dtype=x.dtype)
        for g in range(groups):
            own = parts[..., g * channels : (g + 1) * channels]
            acc[..., g * per_group : (g + 1) * per_group] = np.einsum(
                "...tr,frt->...f", own, weight[g], optimize=True
            )
    _end(run, operator, acc)


def _transposed(
    operator: Convolution, x: np.ndarray, weight: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    groups, per_group, channels, _ = weight.shape
    spatial = operator.spatial
    kernel, stride, dilation, pad = (
        value[3 - spatial :]
        for value in (operator.kernel, operator.stride, operator.dilation, operator.pad)
    )
    acc = np.zeros(shape, dtype=x.dtype)
    for tap, offsets in enumerate(itertools.product(*map(range, kernel))):
        for place in itertools.product(*map(range, x.shape[1:-1])):
            target = tuple(
                i * s + t * d - p
                for i, s, d, p, t in zip(place, stride, dilation, pad, offsets, strict=True)
            )
            if all(0 <= t < size for t, size in zip(target, shape[1:-1], strict=True)):
                for g in range(groups):
                    own = x[(slice(None), *place)][:, g * channels : (g + 1) * channels]
                    part = slice(g * per_group, (g + 1) * per_group)
                    acc[(slice(None), *target, part)] += own @ weight[g, :, :, tap].T
    return acc


def _depthwise(run: Interpreter, operator: Depthwise) -> None:
    x, shape = run.get(operator.x), run.plan.tensors[operator.y].shape
    weight = run.get(operator.weight)
    times = shape[-1] // x.shape[-1]
    assert times * x.shape[-1] == shape[-1] == weight.shape[1]
    parts = np.nan_to_num(_windows(operator, np.repeat(x, times, axis=-1), shape[1:-1]))
    _end(run, operator, (parts * weight).sum(axis=-2))


def _pool(run: Interpreter, operator: Pool) -> None:
    shape = run.plan.tensors[operator.y].shape
    parts = _windows(operator, run.get(operator.x), shape[1:-1])
    match int(operator.kind):
        case 0:
            y = np.nanmax(parts, axis=-2)
        case 1:
            y = np.nanmean(parts, axis=-2)
        case _:
            y = np.nan_to_num(parts).mean(axis=-2)
    run.put(operator.y, y)


def _affine(run: Interpreter, operator: Affine) -> None:
    x = run.get(operator.x)
    if operator.index is not None:
        x = x[..., run.index(operator.index, x.shape[-1])]
    y = x * run.scales(operator.scale, 1.0) + run.scales(operator.shift, 0.0)
    run.put(operator.y, activate(operator.activation, y))


def _unary(run: Interpreter, operator: Unary) -> None:
    run.put(operator.y, activate(operator.activation, run.get(operator.x)))


_BINARY = [
    np.add, np.subtract, np.multiply, np.divide, np.power, np.minimum, np.maximum,
    lambda a, b: np.where(a < 0, a * b, a), np.equal, np.less, np.less_equal, np.greater,
    np.greater_equal, np.mod,
]  # fmt: skip


def _binary(run: Interpreter, operator: Binary) -> None:
    y = _BINARY[operator.kind](run.get(operator.a), run.get(operator.b)).astype(run.dtype)
    run.put(operator.y, activate(operator.activation, y))


def _select(run: Interpreter, operator: Select) -> None:
    condition, a, b = (run.get(t) for t in (operator.condition, operator.a, operator.b))
    run.put(operator.y, np.where(condition != 0, a, b))


def _three(run: Interpreter, operator: Reduce | Softmax | Normalize | Gather | Interpolate):
    x = run.get(operator.x)
    assert x.size == operator.outer * operator.n * operator.inner
    return x.reshape(operator.outer, operator.n, operator.inner)


def _put_flat(run: Interpreter, number: int, array: np.ndarray) -> None:
    run.put(number, array.reshape(run.plan.tensors[number].shape))


def _reduce(run: Interpreter, operator: Reduce) -> None:
    x = _three(run, operator)
    functions = [
        lambda x: x.mean(1), lambda x: x.sum(1), lambda x: x.max(1), lambda x: x.min(1),
        lambda x: x.prod(1), lambda x: np.abs(x).sum(1), lambda x: np.sqrt((x * x).sum(1)),
        lambda x: (x * x).sum(1), lambda x: np.log(x.sum(1)),
        lambda x: np.logaddexp.reduce(x, axis=1),
    ]  # fmt: skip
    _put_flat(run, operator.y, functions[operator.kind](x))


def _softmax(run: Interpreter, operator: Softmax) -> None:
    x = _three(run, operator)
    x = x - x.max(axis=1, keepdims=True)
    total = np.exp(x).sum(axis=1, keepdims=True)
    _put_flat(run, operator.y, x - np.log(total) if operator.log else np.exp(x) / total)


def _normalize(run: Interpreter, operator: Normalize) -> None:
    x = _three(run, operator)
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    _put_flat(run, operator.y, (x - mean) / np.sqrt(variance + operator.epsilon))


def _matmul(run: Interpreter, operator: MatMul) -> None:
    run.put(operator.y, run.get(operator.a) @ run.get(operator.b))


def _move(run: Interpreter, operator: Move) -> None:
    x = run.get(operator.x).reshape(-1)
    y = run._flat(run.plan.tensors[operator.y])
    assert run.plan.tensors[operator.y].place in (Place.ARENA, Place.OUTPUT)
    places = []
    for offset, strides, array in (
        (operator.x_offset, operator.x_stride, x), (operator.y_offset, operator.y_stride, y),
    ):  # fmt: skip
        at = np.full((1,) * len(operator.size), offset, dtype=np.int64)
        for axis, (size, stride) in enumerate(zip(operator.size, strides, strict=True)):
            step = np.arange(size) * stride
            at = at + step.reshape([-1 if a == axis else 1 for a in range(len(operator.size))])
        assert at.min() >= 0
        assert at.max() < len(array)
        places.append(np.broadcast_to(at, operator.size))
    y[places[1]] = x[places[0]]


def _gather(run: Interpreter, operator: Gather) -> None:
    x = _three(run, operator)
    _put_flat(run, operator.y, x[:, run.index(operator.index, operator.n).reshape(-1)])


def _fill(run: Interpreter, operator: Fill) -> None:
    shape = run.plan.tensors[operator.y].shape
    run.put(operator.y, np.full(shape, operator.value, dtype=run.dtype))


def _interpolate(run: Interpreter, operator: Interpolate) -> None:
    x = _three(run, operator)
    index, weight = run.index(operator.index, operator.n), run.get(operator.weight)
    assert index.shape == weight.shape
    assert index.shape[1] == operator.taps
    _put_flat(run, operator.y, np.einsum("ojti,jt->oji", x[:, index], weight))


RUN = {
    Convolution: _convolution,
    Depthwise: _depthwise,
    Pool: _pool,
    Affine: _affine,
    Unary: _unary,
    Binary: _binary,
    Select: _select,
    Reduce: _reduce,
    Softmax: _softmax,
    Normalize: _normalize,
    MatMul: _matmul,
    Move: _move,
    Gather: _gather,
    Fill: _fill,
    Interpolate: _interpolate,
}
