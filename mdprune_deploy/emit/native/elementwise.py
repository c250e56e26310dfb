"""Operators that make each element from those at the same place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...evaluate import Array, attribute
from .lowering import Layout, Lowering, lowers, operands
from .operators import Activation, Affine, Binary, BinaryKind, Function, Select, Unary

_PLAIN = {
    "Abs": Function.ABSOLUTE,
    "Ceil": Function.CEIL,
    "Cos": Function.COS,
    "Erf": Function.ERF,
    "Exp": Function.EXP,
    "Floor": Function.FLOOR,
    "HardSwish": Function.HARD_SWISH,
    "Log": Function.LOG,
    "Mish": Function.MISH,
    "Neg": Function.NEGATE,
    "Not": Function.NOT,
    "Reciprocal": Function.RECIPROCAL,
    "Relu": Function.RELU,
    "Round": Function.ROUND,
    "Sigmoid": Function.SIGMOID,
    "Sign": Function.SIGN,
    "Sin": Function.SIN,
    "Softplus": Function.SOFTPLUS,
    "Softsign": Function.SOFTSIGN,
    "Sqrt": Function.SQRT,
    "Tanh": Function.TANH,
}
_BINARY = {
    "Add": BinaryKind.ADD,
    "Sub": BinaryKind.SUBTRACT,
    "Mul": BinaryKind.MULTIPLY,
    "Div": BinaryKind.DIVIDE,
    "Pow": BinaryKind.POWER,
    "Min": BinaryKind.MINIMUM,
    "Max": BinaryKind.MAXIMUM,
    "PRelu": BinaryKind.PRELU,
    "Equal": BinaryKind.EQUAL,
    "Less": BinaryKind.LESS,
    "LessOrEqual": BinaryKind.LESS_OR_EQUAL,
    "Greater": BinaryKind.GREATER,
    "GreaterOrEqual": BinaryKind.GREATER_OR_EQUAL,
    "Sum": BinaryKind.ADD,
    "Mean": BinaryKind.ADD,
    "And": BinaryKind.MULTIPLY,
    "Or": BinaryKind.MAXIMUM,
    "Xor": BinaryKind.EQUAL,
}
_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def activation(low: Lowering, node: ir.Node) -> Activation | None:
    """Returns the function of one operand that a node is, None where it is none."""
    kind = node.op_type
    if kind in _PLAIN:
        return Activation(_PLAIN[kind])
    match kind:
        case "Clip":
            bounds = [
                low.constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2)
            ]
            given = [i for i in (1, 2) if len(node.inputs) > i and node.inputs[i] is not None]
            if any(bounds[i - 1] is None for i in given):
                return None
            low_bound, high_bound = (
                default if bound is None else float(bound.reshape(()))
                for bound, default in zip(bounds, (-np.inf, np.inf), strict=True)
            )
            return Activation(Function.CLIP, low_bound, high_bound)
        case "LeakyRelu":
            return Activation(Function.LEAKY_RELU, attribute(node, "alpha", 0.01))
        case "HardSigmoid":
            parameters = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
            return Activation(Function.HARD_SIGMOID, *parameters)
        case "Gelu":
            tanh = attribute(node, "approximate", "none") == "tanh"
            return Activation(Function.GELU_TANH if tanh else Function.GELU)
        case "Elu":
            return Activation(Function.ELU, attribute(node, "alpha", 1.0))
        case "Celu":
            return Activation(Function.CELU, attribute(node, "alpha", 1.0))
        case "Selu":
            parameters = attribute(node, "alpha", _SELU[0]), attribute(node, "gamma", _SELU[1])
            return Activation(Function.SELU, *parameters)
        case "ThresholdedRelu":
            return Activation(Function.THRESHOLDED_RELU, attribute(node, "alpha", 1.0))
        case "Swish":
            return Activation(Function.SILU) if attribute(node, "alpha", 1.0) == 1.0 else None
    return None


@lowers(*_PLAIN, "Clip", "LeakyRelu", "HardSigmoid", "Gelu", "Elu", "Celu", "Selu",
        "ThresholdedRelu", "Swish")  # fmt: skip
def unary(low: Lowering, node: ir.Node) -> None:
    """A function of one operand, in whichever layout that is."""
    found = activation(low, node)
    data = node.inputs[0]
    assert data is not None
    if found is None:
        raise low.refuse(node, "its bounds or its factor are not supported")
    layout = low.layout([data])
    x = low.tensor(data, layout)
    y = low.make(node.outputs[0], layout)
    low.draft.operators.append(Unary(name=node.name or "", x=x, y=y, activation=found))


@lowers("Identity", "Dropout")
def identity(low: Lowering, node: ir.Node) -> None:
    """Nothing is computed."""
    assert node.inputs[0] is not None
    low.alias(node.outputs[0], node.inputs[0])


@lowers("Cast")
def cast(low: Lowering, node: ir.Node) -> None:
    """Numbers stay as they are; to a truth value, zero is false."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    if not low.is_boolean(output) or low.is_boolean(data):
        low.alias(output, data)
        return
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(output, layout)
    between = low.draft.activation(low.draft.shape(y))
    negate, name = Activation(Function.NOT), node.name or ""
    low.draft.operators.append(Unary(name=name, x=x, y=between, activation=negate))
    low.draft.operators.append(Unary(name=name, x=between, y=y, activation=negate))


@lowers(*_BINARY, "Mod")
def binary(low: Lowering, node: ir.Node) -> None:
    """Two or more operands, broadcast, taken together from the left."""
    values, output = operands(node), node.outputs[0]
    if node.op_type == "Mod" and attribute(node, "fmod", 0):
        _remainder(low, node)
        return
    kind = _BINARY.get(node.op_type, BinaryKind.MODULO)
    if len(values) == 1:
        low.alias(output, values[0])
        return
    if len(values) == 2 and _affine(low, node, kind, values):
        return
    layout = _layout(low, values, output)
    rank = len(low.shape(output))
    tensors = [low.operand(value, rank, layout) for value in values]
    y = low.make(output, layout)
    shape = low.draft.shape(tensors[0])
    total, name = tensors[0], node.name or ""
    last = Activation(Function.NOT) if node.op_type == "Xor" else Activation()
    if node.op_type == "Mean":
        width = low.draft.shape(y)[-1]
        scale = low.draft.constant(np.full(width, 1.0 / len(values)))
        y, mean = low.draft.activation(low.draft.shape(y)), y
    for position, tensor in enumerate(tensors[1:], start=2):
        shape = np.broadcast_shapes(shape, low.draft.shape(tensor))
        made = y if position == len(tensors) else low.draft.activation(shape)
        low.draft.operators.append(
            Binary(
                name=name, a=total, b=tensor, y=made, kind=kind,
                activation=last if made == y else Activation(),
            )
        )  # fmt: skip
        total = made
    if node.op_type == "Mean":
        low.draft.operators.append(Affine(name=name, x=total, y=mean, scale=scale))


def _layout(low: Lowering, values: list[ir.Value], output: ir.Value) -> Layout:
    """Returns the layout that moves least; operands of lower rank come row-major."""
    rank = len(low.shape(output))
    full = [v for v in values if len(low.shape(v)) == rank and low.constant(v) is None]
    lower = [v for v in values if len(low.shape(v)) < rank and low.constant(v) is None]
    if not full:
        return Layout.ROWS
    if lower and all(Layout.ROWS in low.layouts(value) for value in full):
        return Layout.ROWS
    return low.layout(full)


def _affine(low: Lowering, node: ir.Node, kind: BinaryKind, values: list[ir.Value]) -> bool:
    """Lowers an operator with one constant per channel as scale and shift, if it is one."""
    constants = [low.constant(value) for value in values]
    if sum(constant is not None for constant in constants) != 1:
        return False
    side = 0 if constants[0] is not None else 1
    constant, data, output = constants[side], values[1 - side], node.outputs[0]
    assert constant is not None
    shape = low.shape(output)
    if low.shape(data) != shape or not shape or not np.isfinite(constant).all():
        return False
    coefficients = _coefficients(kind, side, constant.astype(np.float64))
    if coefficients is None:
        return False
    scale, shift = coefficients
    padded = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    axes = [axis for axis, size in enumerate(padded.shape) if size > 1]
    if len(axes) > 1:
        return False
    layout = low.layout([data])
    if axes and layout.position(axes[0], len(shape)) != len(shape) - 1:
        if axes[0] != 1:
            return False
        layout = Layout.LAST
    source, indices = low.selection(data, layout.order(len(shape))[-1])
    x = low.tensor(source, layout)
    y = low.make(output, layout)
    width = low.draft.shape(y)[-1]

    def vector(array: Array | None) -> int | None:
        if array is None:
            return None
        return low.draft.constant(np.broadcast_to(array.reshape(-1), (width,)))

    low.draft.operators.append(
        Affine(
            name=node.name or "", x=x, y=y, scale=vector(scale), shift=vector(shift),
            index=None if indices is None else low.draft.index(indices),
        )
    )  # fmt: skip
    return True


def _coefficients(
    kind: BinaryKind, side: int, constant: Array
) -> tuple[Array | None, Array | None] | None:
    """Returns scale and shift of an operator with a constant on one side (0 is the left)."""
    match kind, side:
        case BinaryKind.ADD, _:
            return None, constant
        case BinaryKind.SUBTRACT, 1:
            return None, -constant
        case BinaryKind.SUBTRACT, 0:
            return -np.ones_like(constant), constant
        case BinaryKind.MULTIPLY, _:
            return constant, None
        case BinaryKind.DIVIDE, 1:
            return (1.0 / constant, None) if constant.all() else None
    return None


def _remainder(low: Lowering, node: ir.Node) -> None:
    """The remainder with the sign of a: `sign(a) * (|a| mod |b|)`."""
    values, output = operands(node), node.outputs[0]
    layout = _layout(low, values, output)
    rank = len(low.shape(output))
    tensors = [low.operand(value, rank, layout) for value in values]
    y = low.make(output, layout)
    name = node.name or ""

    def function(tensor: int, kind: Function) -> int:
        made = low.draft.activation(low.draft.shape(tensor))
        low.draft.operators.append(Unary(name=name, x=tensor, y=made, activation=Activation(kind)))
        return made

    a, b = (function(tensor, Function.ABSOLUTE) for tensor in tensors)
    rest = low.draft.activation(low.draft.shape(y))
    low.draft.operators.append(Binary(name=name, a=a, b=b, y=rest, kind=BinaryKind.MODULO))
    sign = function(tensors[0], Function.SIGN)
    low.draft.operators.append(Binary(name=name, a=sign, b=rest, y=y, kind=BinaryKind.MULTIPLY))


@lowers("Where")
def where(low: Lowering, node: ir.Node) -> None:
    """One of two operands."""
    values, output = operands(node), node.outputs[0]
    layout = _layout(low, values, output)
    condition, a, b = (low.operand(v, len(low.shape(output)), layout) for v in values)
    y = low.make(output, layout)
    low.draft.operators.append(Select(name=node.name or "", condition=condition, a=a, b=b, y=y))
