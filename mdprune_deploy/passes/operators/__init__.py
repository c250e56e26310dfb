"""The operator table: what the compiler knows about each ONNX operator, one entry each."""

from . import elementwise, mixing, movement, product
from .base import Operator, operator

__all__ = ["Operator", "elementwise", "mixing", "movement", "operator", "product"]
