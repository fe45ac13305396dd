"""Cases of operations that move elements, or find them by indices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.plan.rule_cases import Attrs, Case, N, case


def places() -> Iterator[Case]:
    yield case("Transpose", N.real(5, 4, 6), [2, 0, 1], letters="abc,.->cab")
    yield case("ConjugateTranspose", N.complex(5, 4, 6), [1, 0, 2], letters="abc,.->bac")
    yield case("ReverseV2", N.real(5, 4, 6), [-2], letters="a.c,.->a.c")
    yield case("Reverse", N.real(5, 4), np.asarray([False, True]), letters="a.,.->a.")
    yield case("ReverseSequence", N.real(5, 4, 6), [1, 2, 3, 4, 4], seq_dim=1, batch_dim=0, letters="a.c,a->a.c")
    yield case("ReverseSequence", N.real(4, 5, 6), [1, 2, 3, 4, 4], seq_dim=0, batch_dim=1, letters=".bc,b->.bc")
    yield case("Roll", N.real(5, 4, 6), [1, 2], [0, 2], letters=".b.,.,.->.b.")
    yield case("Roll", N.real(5, 4), 1, -1, letters="a.,,->a.")
    image = N.real(4, 4, 6, 5)
    yield case("SpaceToBatchND", image, [2, 2], [[0, 0], [0, 0]], letters="...d,.,..->...d")
    yield case("SpaceToBatchND", N.real(5, 6, 4), [2], [[0, 0]], letters="..c,.,..->..c")
    yield case("BatchToSpaceND", image, [2, 2], [[0, 0], [0, 0]], letters="...d,.,..->...d")
    yield case("SpaceToBatch", image, [[0, 0], [0, 0]], block_size=2, letters="...d,..->...d")
    yield case("BatchToSpace", image, [[0, 0], [0, 0]], block_size=2, letters="...d,..->...d")
    yield case("SpaceToDepth", N.real(5, 4, 6, 3), block_size=2, letters="b...->b...")
    yield case("DepthToSpace", N.real(5, 4, 6, 8), block_size=2, letters="b...->b...")
    window: Attrs = {"ksizes": [1, 2, 2, 1], "strides": [1, 1, 1, 1], "rates": [1, 1, 1, 1], "padding": "SAME"}
    yield case("ExtractImagePatches", image, **window, letters="b...->b...")
    window = {"ksizes": [1, 2, 2, 2, 1], "strides": [1, 1, 1, 1, 1], "padding": "SAME"}
    yield case("ExtractVolumePatches", N.real(5, 4, 4, 4, 2), **window, letters="b....->b....")
    yield case("Diag", N.real(5), letters=".->..")
    yield case("DiagPart", N.real(5, 5), letters="..->.")


def slices() -> Iterator[Case]:
    x, y = N.real(5, 4, 6), N.real(5, 4)
    yield case("StridedSlice", x, [0, 1, 0], [5, 3, 9], [1, 1, 1], letters="a.c,.,.,.->a.c")
    yield case("StridedSlice", x, [0, 0], [0, 0], [1, -1], begin_mask=3, end_mask=3, letters="a.c,.,.,.->a.c")
    yield case("StridedSlice", x, [0, 2], [0, 3], [1, 1], ellipsis_mask=1, shrink_axis_mask=2, letters="ab.,.,.,.->ab")
    yield case(
        "StridedSlice", x, [0, 0, 1], [0, 0, 2], [1, 1, 1], new_axis_mask=2, end_mask=1, letters="a.c,.,.,.->a..c"
    )
    yield case("StridedSlice", x, [-9, -4, 1], [5, 99, 5], [1, 1, 2], letters="ab.,.,.,.->ab.")
    yield case("StridedSlice", x, [1], [2], [1], letters=".bc,.,.,.->.bc")
    begin, end, strides = [0, 1], [5, 3], [1, 1]
    yield case("StridedSliceGrad", [5, 4], begin, end, strides, N.real(5, 2), letters=".,.,.,.,a.->a.")
    yield case("StridedSliceGrad", [5, 4], [2], [3], [1], N.real(4), shrink_axis_mask=1, letters=".,.,.,.,b->.b")
    yield case("TensorStridedSliceUpdate", y, begin, end, strides, N.real(5, 2), letters="a.,.,.,.,a.->a.")
    yield case("Slice", x, [0, 1, 0], [5, 2, -1], letters="a.c,.,.->a.c")
    for op, more in (("Pad", ()), ("PadV2", (N.real(),))):
        yield case(op, y, [[0, 0], [1, 2]], *more, letters=f"a.,..{',' * len(more)}->a.")
    yield case("MirrorPad", y, [[0, 0], [1, 2]], mode="REFLECT", letters="a.,..->a.")
    yield case("MirrorPadGrad", N.real(5, 7), [[0, 0], [1, 2]], mode="REFLECT", letters="a.,..->a.")
    yield case("ConcatV2", y, N.real(5, 6), 1, letters="a.,a.,->a.")
    yield case("ConcatV2", y, N.real(6, 4), -2, letters=".b,.b,->.b")
    yield case("Concat", 1, y, N.real(5, 6), letters=",a.,a.->a.")
    yield case("Pack", y, y + 1, y * 2, axis=1, letters="ab,ab,ab->a.b")
    yield case("Pack", N.real(), N.real(), axis=0, letters=",->.")
    yield case("Unpack", N.real(5, 2, 4), num=2, axis=1, letters="a.c->ac,ac")
    yield case("Split", 1, N.real(5, 6), num_split=2, letters=",a.->a.,a.")
    yield case("SplitV", N.real(5, 6), [2, 3, 1], 1, num_split=3, letters="a.,.,->a.,a.,a.")
    yield case("BroadcastTo", N.real(4, 1), [5, 4, 6], letters="b.,.->abc")
    yield case("Tile", N.real(5, 1, 4, 2), [1, 6, 1, 2], letters="a.c.,.->abc.")
    yield case("Fill", [5, 4], N.real(), letters=".,->ab")


def indices() -> Iterator[Case]:
    table, q = N.real(7, 5, 4), N.below(7, 6, 8)
    yield case("Gather", table, q, letters=".bc,AB->ABbc")
    yield case("GatherV2", table, q, 0, letters=".bc,AB,->ABbc")
    yield case("GatherV2", N.real(5, 7, 4), q, -2, letters="a.c,AB,->aABc")
    yield case("GatherV2", N.real(5, 7, 4), N.below(7, 5, 8), 1, batch_dims=1, letters="a.c,aA,->aAc")
    yield case("GatherNd", table, N.below(4, 6, 8, 2), letters="..A,ab.->abA")
    yield case("ScatterNd", N.below(7, 6, 1), N.real(6, 4), [7, 4], letters="a.,aA,.->.A")
    for op in ("Add", "Sub", "Max", "Min"):
        yield case(f"TensorScatter{op}", N.real(7, 4), N.below(7, 6, 1), N.real(6, 4), letters=".A,a.,aA->.A")
    yield case("TensorScatterUpdate", N.real(7, 4), [[1], [3], [5], [6]], N.real(4, 4), letters=".A,a.,aA->.A")
    for op in ("Sum", "Max", "Min", "Prod"):
        yield case(f"UnsortedSegment{op}", N.real(6, 8, 4), N.below(3, 6, 8), 4, letters="abA,ab,->.A")
    yield case("OneHot", N.below(3, 5, 4), 3, N.real(), N.real(), letters="ab,,,->ab.")
    yield case("OneHot", N.below(3, 5, 4), 3, N.real(), N.real(), axis=0, letters="ab,,,->.ab")


SHAPES = (*places(), *slices(), *indices())
