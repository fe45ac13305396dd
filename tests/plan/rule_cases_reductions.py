"""Cases of operations along an axis: reductions, matrices, Fourier transforms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tests.plan.rule_cases import Case, N, case


def reductions() -> Iterator[Case]:
    x = N.real(5, 4, 6)
    for op in ("Sum", "Mean", "Max", "Min", "Prod", "EuclideanNorm"):
        yield case(op, x, [0, -1], letters="abc,.->b")
        yield case(op, x, 1, keep_dims=True, letters="abc,->a.c")
    for op in ("All", "Any"):
        yield case(op, N.truth(5, 4), [0], letters="ab,.->b")
    yield case("Mean", N.below(9, 5, 4), [0], letters="ab,.->b")
    yield case("Sum", N.below(9, 5, 4), [1], letters="ab,.->a")
    yield case("Sum", N.real(), [], letters=",.->")
    yield case("L2Loss", x, letters="abc->")
    yield case("HistogramFixedWidth", N.real(5, 4), np.asarray([-1.0, 1.0]), 4, letters="ab,.,->.")
    none = np.zeros((0,), np.float32)
    yield case("Bincount", N.below(7, 5, 4), 7, N.single(5, 4), letters="ab,,ab->.")
    yield case("Bincount", N.below(7, 5, 4), 7, none, letters="ab,,.->.")
    yield case("DenseBincount", N.below(7, 5, 4), 7, N.single(5, 4), letters="ab,,ab->a.")
    yield case("DenseBincount", N.below(7, 5), 7, none, binary_output=True, letters="a,,.->.")
    yield case("DenseBincount", N.below(7, 5, 4), 7, none, binary_output=True, letters="ab,,.->a.")
    for op in ("Cumsum", "Cumprod", "CumulativeLogsumexp"):
        yield case(op, x, 1, exclusive=True, letters="a.c,->a.c")
    for op in ("ArgMax", "ArgMin"):
        yield case(op, x, 1, letters="a.c,->ac")
    yield case("TopKV2", x, 3, letters="AB.,->AB.,AB.")
    yield case("InTopKV2", N.single(5, 4), N.below(4, 5), 2, letters="A.,A,->A")
    yield case("InTopK", N.single(5, 4), N.below(4, 5), k=2, letters="A.,A->A")
    yield case("NthElement", N.real(5, 4), 2, letters="A.,->A")
    for op in ("LowerBound", "UpperBound"):
        yield case(op, np.sort(N.real(5, 4), -1), N.real(5, 6), letters="b.,bn->bn")
    yield case("InvertPermutation", [2, 0, 3, 1], letters=".->.")


def matrices() -> Iterator[Case]:
    square, definite, right = N.real(5, 3, 3) + 3 * np.eye(3), N.definite(5, 3), N.real(5, 3, 4)
    yield case("MatrixBandPart", N.real(5, 4, 6), 1, -1, letters="A..,,->A..")
    yield case("MatrixDiag", N.real(5, 4), letters="a.->a..")
    yield case("MatrixDiagPart", square, letters="a..->a.")
    yield case("MatrixSetDiag", square, N.real(5, 3), letters="a..,a.->a..")
    for version in ("V2", "V3"):
        yield case(f"MatrixDiag{version}", N.real(5, 4), 1, -1, -1, N.real(), letters="a.,,,,->a..")
        yield case(f"MatrixDiag{version}", N.real(5, 2, 4), [0, 1], 4, 4, N.real(), letters="a..,.,,,->a..")
        yield case(f"MatrixDiagPart{version}", square, [-1, 1], N.real(), letters="a..,.,->a..")
        yield case(f"MatrixDiagPart{version}", square, 0, N.real(), letters="a..,,->a.")
        yield case(f"MatrixSetDiag{version}", square, N.real(5, 2), 1, letters="a..,a.,->a..")
    for op in ("Cholesky", "MatrixInverse", "MatrixSquareRoot"):
        yield case(op, definite, letters="A..->A..")
    yield case("MatrixLogarithm", definite.astype(np.complex128), letters="A..->A..")
    yield case("CholeskyGrad", np.linalg.cholesky(definite), N.real(5, 3, 3), letters="A..,A..->A..")
    yield case("MatrixDeterminant", square, letters="A..->A")
    yield case("LogMatrixDeterminant", square, letters="A..->A,A")
    for op in ("MatrixSolve", "MatrixTriangularSolve", "BandedTriangularSolve"):
        yield case(op, square, right, letters="A..,A.k->A.k")
    yield case("MatrixTriangularSolve", square[0], right, letters="..,A.k->A.k")
    yield case("TridiagonalSolve", square, right, letters="A..,A.k->A.k")
    yield case("TridiagonalMatMul", *(N.real(5, 1, 3) for _ in range(3)), right, letters="A..,A..,A..,A.k->A.k")
    yield case("MatrixSolveLs", square, right, np.float64(0) * np.ones(()), fast=False, letters="A..,A.k,->A.k")
    yield case("Qr", square, letters="A..->A..,A..")
    yield case("Lu", square, letters="A..->A..,A.")
    yield case("Svd", square, letters="A..->A.,A..,A..")
    yield case("Svd", square, compute_uv=False)
    yield case("SelfAdjointEigV2", definite, letters="A..->A.,A..")
    yield case("Eig", definite, Tout=tf.complex128, letters="A..->A.,A..")
    yield case("Cross", N.real(5, 4, 3), N.real(5, 4, 3), letters="AB.,AB.->AB.")
    cube = N.complex(5, 4, 4, 4)
    for rank, suffix in ((1, ""), (2, "2D"), (3, "3D")):
        name, dims = "ABCD"[: 4 - rank], "." * rank
        for op in ("FFT", "IFFT"):
            yield case(op + suffix, cube, letters=f"{name}{dims}->{name}{dims}")
        yield case(
            f"RFFT{suffix}", cube.real, [4] * rank, Tcomplex=tf.complex128, letters=f"{name}{dims},.->{name}{dims}"
        )
        half = cube[..., :3]
        yield case(f"IRFFT{suffix}", half, [4] * rank, Treal=tf.float64, letters=f"{name}{dims},.->{name}{dims}")


REDUCTIONS = (*reductions(), *matrices())
