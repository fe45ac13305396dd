"""Cases of operations that work element by element, at shapes that are broadcast in all ways; and of strings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tests.plan.rule_cases import Array, Attrs, Case, N, case

Draw = Callable[..., Array]

ONE: tuple[tuple[str, Draw], ...] = (
    (
        "Identity StopGradient PreventGradient Snapshot DeepCopy GuaranteeConst ZerosLike OnesLike Neg Abs Relu "
        "LeakyRelu Sign IsFinite IsInf IsNan Square Reciprocal Inv Exp Expm1 Tanh Sigmoid Softplus Softsign Elu Selu "
        "Relu6 Erf Erfinv Floor Ceil Round Rint Sinh Asin Asinh Atan Atanh BesselI1 Erfc Sin Cos Tan Cosh Acos Dawsn "
        "FresnelCos FresnelSin BesselI0 BesselI0e BesselI1e BesselJ0 BesselJ1 AsString",
        N.real,
    ),
    (
        "Sqrt Rsqrt Log Log1p Ndtri Lgamma Digamma Expint Spence BesselK0 BesselK0e BesselK1 BesselK1e BesselY0 "
        "BesselY1",
        N.positive,
    ),
    ("FakeQuantWithMinMaxArgs", N.single),
    ("Real Imag Conj Angle ComplexAbs", N.complex),
    ("LogicalNot", N.truth),
    ("Invert PopulationCount", lambda *shape: N.below(9, *shape)),
    ("DataFormatDimMap", lambda *shape: N.below(4, *shape)),
)
TWO: tuple[tuple[str, Draw], ...] = (
    (
        "Add AddV2 Sub Mul MulNoNan RealDiv Div DivNoNan Xdivy Maximum Minimum SquaredDifference FloorDiv FloorMod "
        "Atan2 Equal NotEqual Greater GreaterEqual Less LessEqual Complex",
        N.real,
    ),
    ("Pow Xlogy Xlog1py Igamma Igammac IgammaGradA RandomGammaGrad", N.positive),
    ("Mod TruncateDiv TruncateMod BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift", lambda *s: 1 + N.below(5, *s)),
    ("Zeta", lambda *shape: N.positive(*shape, low=1.5, high=2.5)),
    ("Polygamma", lambda *shape: 1.0 + N.below(3, *shape)),
    ("LogicalAnd LogicalOr", N.truth),
)
TWO_ALIKE: tuple[tuple[str, Draw], ...] = (
    (
        "NextAfter ApproximateEqual ReluGrad LeakyReluGrad Relu6Grad EluGrad SeluGrad SoftplusGrad SoftsignGrad "
        "TanhGrad SigmoidGrad SqrtGrad RsqrtGrad ReciprocalGrad InvGrad AddN",
        N.real,
    ),
    ("FakeQuantWithMinMaxArgsGradient", N.single),
)
STRINGS = np.asarray([[" ab", "c1"], ["d", "Ef "], ["x", "y"], ["", "z"]], object)
NUMERALS = np.asarray([["1", "2.5"], ["-3", "4"], ["5", "6"], ["7", "8"]], object)


def elementwise() -> Iterator[Case]:
    """Unary operations, and binary ones at shapes that are broadcast in all ways."""
    result: dict[str, Attrs] = {
        **{op: {"Tout": tf.float64} for op in ("Real", "Imag", "Angle", "ComplexAbs")},
        "Complex": {"Tout": tf.complex128},
    }
    for ops, draw in ONE:
        for op in ops.split():
            yield case(op, draw(5, 4), **result.get(op, {}), letters="ab->ab")
    for ops, draw in TWO:
        for op in ops.split():
            yield case(op, draw(5, 4), draw(5, 4), **result.get(op, {}), letters="ab,ab->ab")
            yield case(op, draw(5, 4), draw(4), **result.get(op, {}), letters="ab,b->ab")
            yield case(op, draw(5, 1, 4), draw(6, 1), **result.get(op, {}), letters="a.c,b.->abc")
            yield case(op, draw(), draw(1, 4), **result.get(op, {}), letters=",ab->ab")
    for ops, draw in TWO_ALIKE:
        for op in ops.split():
            yield case(op, draw(5, 4), draw(5, 4), letters="ab,ab->ab")


def other_elementwise() -> Iterator[Case]:
    yield case("Acosh", N.positive(5, 4, low=1.5, high=3.0))
    yield case("CheckNumerics", N.real(5, 4), message="x")
    yield case("CheckNumericsV2", N.real(5, 4), message="x")
    yield case("EnsureShape", N.real(5, 4), shape=[None, None])
    yield case("Bucketize", N.real(5, 4), boundaries=[-0.5, 0.0, 0.5])
    for source, target in itertools.product(
        (np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_, np.complex64),
        (tf.float32, tf.float64, tf.int32, tf.int64, tf.uint8, tf.bool, tf.complex64, tf.bfloat16),
    ):
        if target == tf.uint8 and np.dtype(source).kind == "f":
            continue  # of negative numbers that is nothing
        numbers = 3 * (N.real(5, 4) if source not in (np.uint8, np.bool_) else N.below(2, 5, 4))
        yield case("Cast", numbers.astype(source), DstT=target, letters="ab->ab")
    yield case("Bitcast", N.single(5, 4), type=tf.int32, letters="ab->ab")
    yield case("Bitcast", N.single(5, 4), type=tf.uint8, letters="ab->ab.")
    yield case("Bitcast", N.below(9, 5, 4).astype(np.uint8), type=tf.float32, letters="a.->a")
    for exponent in (2.0, 0.5, -1.5, 1 / 3, 3.0):
        yield case("Pow", N.positive(5, 4), np.float64(exponent) * np.ones(()), known=(1,), letters="ab,->ab")
    yield case("Pow", N.positive(5, 4), np.full((4,), 2.0), known=(1,))
    yield case("RealDiv", N.single(5, 4), N.single(5, 4))
    yield case("Div", 9 * N.below(9, 5, 4), 1 + N.below(4, 5, 4))
    yield case("LeakyRelu", N.real(5, 4), alpha=-0.5)
    yield case("SelectV2", N.truth(5, 1), N.real(5, 4), N.real(4), letters="a.,ab,b->ab")
    yield case("SelectV2", N.truth(5, 4), N.real(), N.real(5, 4), letters="ab,,ab->ab")
    yield case("SelectV2", N.truth(5, 4), N.truth(5, 4), N.truth(5, 4), letters="ab,ab,ab->ab")
    yield case("Select", N.truth(5), N.real(5, 4), N.real(5, 4), letters="a,ab,ab->ab")
    yield case("Select", N.truth(5, 4), N.real(5, 4), N.real(5, 4), letters="ab,ab,ab->ab")
    yield case("Select", N.truth(), N.real(5, 4), N.real(5, 4), letters=",ab,ab->ab")
    yield case("ClipByValue", N.real(5, 4), np.float64(-0.3) * np.ones(()), np.full((), 0.3), letters="ab,,->ab")
    yield case("ClipByValue", N.real(5, 4), -N.positive(5, 4), N.positive(5, 4), letters="ab,ab,ab->ab")
    yield case("Betainc", N.positive(5, 4), N.positive(5, 4), N.positive(5, 4))
    yield case("FakeQuantWithMinMaxVars", N.single(5, 4), -(N.single() ** 2), N.single() ** 2)
    yield case("Gradient", N.real(5, 4), letters="ab->ab")
    yield case("Write", N.real(5, 4), letters="ab->ab")


def strings() -> Iterator[Case]:
    for op in ("StringLower", "StringUpper", "StringStrip", "StringLength", "EncodeBase64"):
        yield case(op, STRINGS, letters="ab->ab")
    yield case("UnicodeScript", N.below(200, 4, 2), letters="ab->ab")
    yield case("StringToNumber", NUMERALS, letters="ab->ab")
    for op in ("StringToHashBucket", "StringToHashBucketFast"):
        yield case(op, STRINGS, num_buckets=9, letters="ab->ab")
    yield case("StringToHashBucketStrong", STRINGS, num_buckets=9, key=[1, 2])
    yield case("StaticRegexReplace", STRINGS, pattern="[a-d]", rewrite="q")
    yield case("StaticRegexFullMatch", STRINGS, pattern="[a-d]*")
    yield case("RegexReplace", STRINGS, np.asarray("[a-d]", object), np.asarray("q", object), letters="ab,,->ab")
    yield case("RegexFullMatch", STRINGS, np.asarray("[a-d]*", object), letters="ab,->ab")
    yield case("StringJoin", STRINGS, NUMERALS, np.asarray("-", object), letters="ab,ab,->ab")
    yield case("Substr", NUMERALS, 0, 1, letters="ab,,->ab")
    yield case("UnicodeTranscode", STRINGS, input_encoding="UTF-8", output_encoding="UTF-16-BE")
    yield case("DecodeBase64", np.asarray(["YQ", "Yg", "Yw", "ZA"], object))
    yield case("ReduceJoin", STRINGS, [1], letters="ab,.->a")


ELEMENTWISE = (*elementwise(), *other_elementwise(), *strings())
