"""Rules of operations that work element by element, operands of fewer dims or of size 1 repeated.

What is not about letters is in the table: in which operands they are linear, what a constant factor becomes, and
whether they keep the order of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from whale_tf.ir.graph import DType
from whale_tf.ir.sizes import uniform
from whale_tf.plan.kinds import LETTERS, WHOLE_DIM, Kind, Rule, TypedNode, elementwise, is_integer, is_number, table
from whale_tf.plan.work import add_n, free

_HALF = Fraction(1, 2)
_FIRST, _SECOND = frozenset({0}), frozenset({1})


def _cast(typed: TypedNode) -> Rule:
    """Linear where no number is rounded to an integer; in order where none wraps around."""
    source, target = typed.inputs[0].dtype, typed.node.outputs[0].dtype
    rule = elementwise(typed)
    if target == "bool":
        return replace(rule, powers={0: Fraction(0)}, increasing=source == "bool")
    if not is_number(source):
        return replace(rule, increasing=True)
    rounded = is_integer(target) and not is_integer(source)
    holds = target.startswith("int") and _bits(target) >= _bits(source) + source.startswith("u")
    wraps = is_integer(target) and not holds
    return replace(rule, linear=frozenset() if rounded else _FIRST, increasing=not wraps or target == source)


def _bits(dtype: DType) -> int:
    """The width of an integer; 0 for a float, which is rounded and does not wrap around."""
    return int("".join(filter(str.isdigit, dtype))) if is_integer(dtype) else 0


def _power(typed: TypedNode) -> Rule:
    """(c x)^p = c^p x^p, where p is the same number everywhere and planning knows it."""
    exponent = None if typed.values[1] is None else uniform(typed.values[1])
    rule = elementwise(typed)
    if exponent is None or exponent.dtype.kind not in "iuf":
        return rule
    power = Fraction(float(exponent)).limit_denominator(12)
    if abs(float(power) - float(exponent)) > 1e-6 * abs(float(exponent)):
        return rule
    return replace(rule, powers={0: power})


def _quotient(typed: TypedNode) -> Rule:
    """Linear in the numerator; integers are rounded, and are not."""
    rule = elementwise(typed)
    if is_integer(typed.inputs[0].dtype):
        return rule
    return replace(rule, linear=_FIRST, powers={1: Fraction(-1)})


def _reciprocal(typed: TypedNode) -> Rule:
    rule = elementwise(typed)
    return rule if is_integer(typed.inputs[0].dtype) else replace(rule, powers={0: Fraction(-1)})


def _leaky(typed: TypedNode) -> Rule:
    return replace(elementwise(typed), increasing=typed.attribute("alpha", 0.2) >= 0)


def _select(typed: TypedNode) -> Rule:
    """The condition of Select is of the same shape, one truth value, or one per element of dim 0."""
    condition, kept, other = (kind.shape for kind in typed.inputs)
    name = LETTERS[: len(kept)]
    if len(condition) not in (0, 1, len(kept)) or len(other) != len(kept):
        return Rule(typed.wholes(0), (WHOLE_DIM * len(kept),))
    return Rule((name[: len(condition)], name, name), (name,))


def _sum_of_all(typed: TypedNode) -> Rule:
    return replace(elementwise(typed), additive=frozenset(range(len(typed.inputs))))


def _bitcast(typed: TypedNode) -> Rule:
    """Elements of another width are taken from, or spread over, a last dim of their own."""
    source, target = typed.input(0), typed.output()
    name = LETTERS[: min(len(source), len(target))]
    return Rule((name.ljust(len(source), WHOLE_DIM),), (name.ljust(len(target), WHOLE_DIM),))


ELEMENTWISE: Mapping[str, Kind] = table(
    {
        "Identity StopGradient PreventGradient Snapshot EnsureShape DeepCopy GuaranteeConst Write": Kind(
            elementwise, linear=(0,), increasing=True, work=free
        ),
        "CheckNumerics CheckNumericsV2": Kind(elementwise, linear=(0,), increasing=True),
        "Gradient": Kind(_sum_of_all, work=free),
        "ZerosLike": Kind(elementwise, linear=(0,), powers={0: 0}, increasing=True, work=free),
        "OnesLike": Kind(elementwise, powers={0: 0}, increasing=True, work=free),
        "Cast": Kind(_cast),
        "Bitcast": Kind(_bitcast, work=free),
        # One operand.
        "Neg Real Imag Conj": Kind(elementwise, linear=(0,)),
        "Complex": Kind(elementwise, additive=(0, 1)),
        "Abs ComplexAbs": Kind(elementwise, powers={0: 1}),
        "Relu": Kind(elementwise, powers={0: 1}, increasing=True),
        "LeakyRelu": Kind(_leaky, powers={0: 1}),
        "Sign": Kind(elementwise, powers={0: 0}, increasing=True),
        "IsFinite IsInf IsNan Angle": Kind(elementwise, powers={0: 0}),
        "Square": Kind(elementwise, powers={0: 2}),
        "Sqrt": Kind(elementwise, powers={0: _HALF}, increasing=True),
        "Rsqrt": Kind(elementwise, powers={0: -_HALF}),
        "Reciprocal Inv": Kind(_reciprocal),
        "Exp Expm1 Log Log1p Tanh Sigmoid Softplus Softsign Elu Selu Relu6 Erf Erfinv Ndtri Floor Ceil Round Rint "
        "Sinh Asin Asinh Acosh Atan Atanh BesselI1 Bucketize": Kind(elementwise, increasing=True),
        "Erfc Sin Cos Tan Cosh Acos Lgamma Digamma LogicalNot Invert PopulationCount Dawsn Expint FresnelCos "
        "FresnelSin Spence BesselI0 BesselI0e BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e "
        "BesselY0 BesselY1 DataFormatDimMap FakeQuantWithMinMaxArgs": Kind(elementwise),
        # Two operands.
        "AddV2 Add Sub": Kind(elementwise, additive=(0, 1)),
        "AddN AccumulateNV2": Kind(_sum_of_all, work=add_n),
        "Mul MulNoNan": Kind(elementwise, linear=(0, 1)),
        "RealDiv Div DivNoNan": Kind(_quotient),
        "Xdivy": Kind(elementwise, linear=(0,), powers={1: -1}),
        "Xlogy Xlog1py": Kind(elementwise, linear=(0,)),
        "Pow": Kind(_power),
        "Maximum Minimum SquaredDifference FloorDiv FloorMod Mod TruncateDiv TruncateMod Atan2 NextAfter "
        "Equal NotEqual Greater GreaterEqual Less LessEqual ApproximateEqual LogicalAnd LogicalOr BitwiseAnd BitwiseOr "
        "BitwiseXor LeftShift RightShift Igamma Igammac IgammaGradA Polygamma Zeta RandomGammaGrad": Kind(elementwise),
        "ReluGrad LeakyReluGrad": Kind(elementwise, linear=(0,), powers={1: 0}),
        "Relu6Grad EluGrad SeluGrad SoftplusGrad SoftsignGrad FakeQuantWithMinMaxArgsGradient": Kind(
            elementwise, linear=(0,)
        ),
        "TanhGrad SigmoidGrad": Kind(elementwise, linear=(1,)),
        "SqrtGrad": Kind(elementwise, linear=(1,), powers={0: -1}),
        "RsqrtGrad": Kind(elementwise, linear=(1,), powers={0: 3}),
        "ReciprocalGrad InvGrad": Kind(elementwise, linear=(1,), powers={0: 2}),
        # Three.
        "SelectV2": Kind(elementwise, additive=(1, 2)),
        "Select": Kind(_select, additive=(1, 2)),
        "ClipByValue Betainc FakeQuantWithMinMaxVars": Kind(elementwise),
        # Strings; a pattern and what takes its place are numbers of no dims.
        "AsString StringLower StringUpper StringStrip StringLength StringToNumber StringToHashBucket "
        "StringToHashBucketFast StringToHashBucketStrong StaticRegexReplace StaticRegexFullMatch RegexReplace "
        "RegexFullMatch StringJoin Substr UnicodeTranscode UnicodeScript EncodeBase64 DecodeBase64": Kind(elementwise),
    }
)
