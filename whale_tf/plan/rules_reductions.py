"""Rules of operations along an axis: reductions, running sums, sorting, matrices, Fourier transforms.

The axis is `.` unless parts of it can come together: as a sum, an extreme, a product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from whale_tf.ir.sharding import Reduction
from whale_tf.plan.kinds import LETTERS, WHOLE_DIM, Kind, Rule, RuleOf, TypedNode, blocked, equation, is_integer, table
from whale_tf.plan.work import free, per_input


def _reduced(reduction: Reduction | None) -> RuleOf:
    def rule(typed: TypedNode) -> Rule | None:
        rank = len(typed.input(0))
        axes = typed.axes(1, rank)
        if axes is None:
            return None
        name, kept = LETTERS[:rank], WHOLE_DIM if typed.attribute("keep_dims", False) else ""
        result = "".join(kept if dim in axes else letter for dim, letter in enumerate(name))
        return Rule((name, typed.whole(1)), (result,), reduction)

    return rule


def _mean(typed: TypedNode) -> Rule | None:
    """The mean of integers is rounded: its parts do not come together."""
    if is_integer(typed.inputs[0].dtype):
        return _reduced(None)(typed)
    rule = _reduced(Reduction.SUM)(typed)
    return None if rule is None else replace(rule, mean=True, linear=frozenset({0}))


def _everything_reduced(typed: TypedNode) -> Rule:
    return Rule((LETTERS[: len(typed.input(0))], *typed.wholes(1)), (WHOLE_DIM * len(typed.output()),))


def _running(typed: TypedNode) -> Rule | None:
    axes = typed.axes(1, len(typed.input(0)))
    if axes is None:
        return None
    name = blocked(len(typed.input(0)), axes)
    return Rule((name, typed.whole(1)), (name,))


def _arg_extreme(typed: TypedNode) -> Rule | None:
    rank = len(typed.input(0))
    axes = typed.axes(1, rank)
    if axes is None:
        return None
    name = blocked(rank, axes)
    return Rule((name, typed.whole(1)), ("".join(name[dim] for dim in range(rank) if dim not in axes),))


def _counted(typed: TypedNode) -> Rule | None:
    """How often each number occurs, or what its weights sum to; weights of no elements are none.

    DenseBincount counts each row of a matrix for itself, and may only tell whether a number occurs.
    """
    values, weights = typed.input(0), typed.input(2)
    if not weights.known or (weights != values and weights != (0,)):
        return None
    weighted = weights == values and values != (0,)
    name = LETTERS[: len(values)]
    by_row = typed.node.op == "DenseBincount" and len(values) == 2
    only_whether = typed.attribute("binary_output", False)
    return Rule(
        (name, "", name if weighted else typed.whole(2)),
        (name[:1] + WHOLE_DIM if by_row else WHOLE_DIM,),
        Reduction.MAX if only_whether else Reduction.SUM,
        linear=frozenset({2}) if weighted and not only_whether else frozenset(),
    )


def _matrices(*matrices: int) -> RuleOf:
    """Of these inputs and the output the leading dims pass; a diagonal has one dim less than a matrix, or as many."""

    def rule(typed: TypedNode) -> Rule:
        leading = LETTERS[: max(len(typed.output()), *(len(typed.input(position)) for position in matrices)) - 2]
        inputs = list(typed.wholes(0))
        for position in matrices:
            inputs[position] = leading.ljust(len(typed.input(position)), WHOLE_DIM)
        return Rule(tuple(inputs), (leading.ljust(len(typed.output()), WHOLE_DIM),))

    return rule


def _svd(typed: TypedNode) -> Rule | None:
    """Without u and v these are empty."""
    if typed.attribute("compute_uv", True):
        return equation("z..->z.,z..,z..")(typed)
    rule = equation("z..->z.,*,*")(typed)
    return rule if rule is None else replace(rule, reduction=None)


REDUCTIONS: Mapping[str, Kind] = table(
    {
        "Sum": Kind(_reduced(Reduction.SUM), linear=(0,), shapes=(1,), work=per_input(0)),
        "Mean": Kind(_mean, shapes=(1,), work=per_input(0)),
        "Max": Kind(_reduced(Reduction.MAX), powers={0: 1}, shapes=(1,), work=per_input(0)),
        "Min": Kind(_reduced(Reduction.MIN), powers={0: 1}, shapes=(1,), work=per_input(0)),
        "Prod": Kind(_reduced(Reduction.PROD), shapes=(1,), work=per_input(0)),
        "All": Kind(_reduced(Reduction.ALL), shapes=(1,), work=per_input(0)),
        "Any": Kind(_reduced(Reduction.ANY), shapes=(1,), work=per_input(0)),
        "EuclideanNorm": Kind(_reduced(None), powers={0: 1}, shapes=(1,), work=per_input(0, 2.0)),
        "ReduceJoin": Kind(_reduced(None), shapes=(1,)),
        "L2Loss": Kind(_everything_reduced, powers={0: 2}, work=per_input(0, 2.0)),
        "HistogramFixedWidth": Kind(_everything_reduced, shapes=(2,)),
        "Bincount DenseBincount": Kind(_counted, shapes=(1,), work=per_input(0)),
        "Cumsum": Kind(_running, linear=(0,), shapes=(1,), work=per_input(0)),
        "Cumprod CumulativeLogsumexp": Kind(_running, shapes=(1,), work=per_input(0)),
        "ArgMax ArgMin": Kind(_arg_extreme, powers={0: 0}, shapes=(1,), work=per_input(0)),
        "TopKV2": Kind(equation("z.,->z.,z."), shapes=(1,)),
        "InTopKV2": Kind(equation("z.,z,->z"), powers={0: 0}),
        "InTopK": Kind(equation("z.,z->z"), powers={0: 0}),
        "NthElement": Kind(equation("z.,->z"), powers={0: 1}),
        "LowerBound UpperBound": Kind(equation("b.,bn->bn")),
        "InvertPermutation": Kind(equation("*->*"), work=free),
        # Matrices.
        "MatrixBandPart": Kind(equation("z..,,->z.."), linear=(0,), work=free),
        "MatrixDiag": Kind(_matrices(0), linear=(0,), increasing=True, work=free),
        "MatrixDiagPart": Kind(_matrices(0), linear=(0,), increasing=True, work=free),
        "MatrixSetDiag": Kind(_matrices(0, 1), additive=(0, 1)),
        "MatrixDiagV2": Kind(_matrices(0), additive=(0, 4), shapes=(1, 2, 3)),
        "MatrixDiagV3": Kind(_matrices(0), additive=(0, 4), shapes=(1, 2, 3), work=free),
        "MatrixDiagPartV2": Kind(_matrices(0), additive=(0, 2), shapes=(1,)),
        "MatrixDiagPartV3": Kind(_matrices(0), additive=(0, 2), shapes=(1,), work=free),
        "MatrixSetDiagV2": Kind(_matrices(0, 1), additive=(0, 1)),
        "MatrixSetDiagV3": Kind(_matrices(0, 1), additive=(0, 1), work=free),
        "Cholesky MatrixSquareRoot": Kind(equation("z..->z.."), powers={0: Fraction(1, 2)}),
        "CholeskyGrad": Kind(equation("z..,z..->z.."), linear=(1,), powers={0: -1}),
        "MatrixInverse": Kind(equation("z..->z.."), powers={0: -1}),
        "MatrixLogarithm": Kind(equation("z..->z..")),
        "MatrixDeterminant": Kind(equation("z..->z")),
        "LogMatrixDeterminant": Kind(equation("z..->z,z")),
        "MatrixSolve MatrixTriangularSolve": Kind(equation("z..,z.k->z.k"), linear=(1,), powers={0: -1}),
        "BandedTriangularSolve TridiagonalSolve": Kind(equation("z..,z.k->z.k"), linear=(1,), powers={0: -1}),
        "MatrixSolveLs": Kind(equation("z..,z.k,->z.k"), linear=(1,)),
        "TridiagonalMatMul": Kind(equation("z..,z..,z..,z.k->z.k"), linear=(3,)),
        "Qr": Kind(equation("z..->z..,z..")),
        "Lu": Kind(equation("z..->z..,z.")),
        "Svd": Kind(_svd),
        "SelfAdjointEigV2 Eig": Kind(equation("z..->z.,z..")),
        "Cross": Kind(equation("z.,z.->z."), linear=(0, 1)),
        # Fourier transforms.
        "FFT IFFT": Kind(equation("z.->z."), linear=(0,)),
        "FFT2D IFFT2D": Kind(equation("z..->z.."), linear=(0,)),
        "FFT3D IFFT3D": Kind(equation("z...->z..."), linear=(0,)),
        "RFFT IRFFT": Kind(equation("z.,.->z."), linear=(0,), shapes=(1,)),
        "RFFT2D IRFFT2D": Kind(equation("z..,.->z.."), linear=(0,), shapes=(1,)),
        "RFFT3D IRFFT3D": Kind(equation("z...,.->z..."), linear=(0,), shapes=(1,)),
    }
)
