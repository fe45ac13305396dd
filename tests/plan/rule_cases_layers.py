"""Cases of what layers are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tests.plan.rule_cases import Attrs, Case, N, case


def products() -> Iterator[Case]:
    for left, right in itertools.product((False, True), repeat=2):
        shapes = (6, 5) if left else (5, 6), (4, 6) if right else (6, 4)
        text = f"{'ka' if left else 'ak'},{'bk' if right else 'kb'}->ab"
        flips: Attrs = {"transpose_a": left, "transpose_b": right}
        yield case("MatMul", N.real(*shapes[0]), N.real(*shapes[1]), **flips, letters=text)
        singles = N.single(*shapes[0]), N.single(*shapes[1])
        yield case("SparseMatMul", *singles, **flips, letters=text)
        for op in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
            flips = {"adj_x": left, "adj_y": right, **({"Tout": tf.float64} if op.endswith("3") else {})}
            name = f"A{'ka' if left else 'ak'},A{'bk' if right else 'kb'}->Aab"
            yield case(op, N.real(7, *shapes[0]), N.real(7, *shapes[1]), **flips, letters=name)
    yield case("BatchMatMulV2", N.real(7, 1, 5, 6), N.real(3, 6, 4), letters="A.ak,Bkb->ABab")
    for equation, operands, text in (
        ("bij,bjk->bik", [(5, 4, 6), (5, 6, 3)], "abc,acd->abd"),
        ("...ij,jk->...ik", [(5, 7, 4, 6), (6, 3)], "abcd,de->abce"),
        ("...i,...i->...", [(5, 1, 6), (4, 6)], "a.c,bc->ab"),
        ("ii->i", [(5, 5)], "..->."),
        ("iij->j", [(5, 5, 4)], "..b->b"),
        ("ij->", [(5, 4)], "ab->"),
        ("i,j->ji", [(5,), (4,)], "a,b->ba"),
    ):
        yield case("Einsum", *(N.real(*shape) for shape in operands), equation=equation, letters=text)
    where = np.asarray([[0, 1], [0, 2], [1, 0], [3, 2], [3, 3]], np.int64)
    shape = np.asarray([4, 5], np.int64)
    yield case("SparseTensorDenseMatMul", where, N.real(5), shape, N.real(5, 6), letters="s.,s,.,.n->.n")
    turned: Attrs = {"adjoint_b": True, "letters": "s.,s,.,n.->.n"}
    yield case("SparseTensorDenseMatMul", where, N.real(5), shape, N.real(6, 5), **turned)


def convolutions() -> Iterator[Case]:
    image, kernel, result = N.real(5, 4, 4, 6), N.real(2, 2, 6, 7), N.real(5, 4, 4, 7)
    same: Attrs = {"strides": [1, 1, 1, 1], "padding": "SAME"}
    yield case("Conv2D", image, kernel, **same, letters="b..c,..co->b..o")
    yield case("Conv2D", image, N.real(2, 2, 3, 8), **same, letters="b...,....->b...")
    yield case("Conv", image, kernel, strides=[1, 1, 1, 1], padding="SAME", letters="b..c,..co->b..o")
    yield case("Conv2DBackpropInput", [5, 4, 4, 6], kernel, result, **same, letters=".,..co,b..o->b..c")
    yield case("Conv2DBackpropFilter", image, [2, 2, 6, 7], result, **same, letters="b..c,.,b..o->..co")
    image, kernel, result = N.real(5, 3, 4, 4, 6), N.real(1, 2, 2, 6, 7), N.real(5, 3, 4, 4, 7)
    same = {"strides": [1, 1, 1, 1, 1], "padding": "SAME"}
    yield case("Conv3D", image, kernel, **same, letters="b...c,...co->b...o")
    yield case("Conv3DBackpropInputV2", [5, 3, 4, 4, 6], kernel, result, **same, letters=".,...co,b...o->b...c")
    yield case("Conv3DBackpropFilterV2", image, [1, 2, 2, 6, 7], result, **same, letters="b...c,.,b...o->...co")
    image, same = N.real(5, 4, 4, 6), {"strides": [1, 1, 1, 1], "padding": "SAME"}
    for multiplier, c in ((1, "c"), (2, ".")):
        kernel, result = N.real(2, 2, 6, multiplier), N.real(5, 4, 4, 6 * multiplier)
        op = "DepthwiseConv2dNative"
        yield case(op, image, kernel, **same, letters=f"b..{c},..{c}.->b..{c}")
        sizes = [5, 4, 4, 6]
        yield case(f"{op}BackpropInput", sizes, kernel, result, **same, letters=f".,..{c}.,b..{c}->b..{c}")
        sizes = [2, 2, 6, multiplier]
        yield case(f"{op}BackpropFilter", image, sizes, result, **same, letters=f"b..{c},.,b..{c}->..{c}.")
    kernel, result = N.real(2, 2, 6), N.real(5, 4, 4, 6)
    same = {"strides": [1, 1, 1, 1], "rates": [1, 1, 1, 1], "padding": "SAME"}
    yield case("Dilation2D", image, kernel, **same, letters="b..c,..c->b..c")
    yield case("Dilation2DBackpropInput", image, kernel, result, **same, letters="b..c,..c,b..c->b..c")
    yield case("Dilation2DBackpropFilter", image, kernel, result, **same, letters="b..c,..c,b..c->..c")


def pools() -> Iterator[Case]:
    for rank, suffix in ((2, ""), (3, "3D")):
        name = "a" + "." * rank + "abcde"[rank + 1]
        image, pooled = N.single(5, *[4] * rank, 6), N.single(5, *[2] * rank, 6)
        window: Attrs = {"ksize": [1, *[2] * rank, 1], "strides": [1, *[2] * rank, 1], "padding": "VALID"}
        maximal = getattr(tf.raw_ops, f"MaxPool{suffix}")(input=image, **window).numpy()
        for op in (f"MaxPool{suffix}", f"AvgPool{suffix}"):
            yield case(op, image, **window, letters=f"{name}->{name}")
        yield case(f"AvgPool{suffix}Grad", [5, *[4] * rank, 6], pooled, **window, letters=f".,{name}->{name}")
        text = f"{name},{name},{name}->{name}"
        yield case(f"MaxPool{suffix}Grad", image, maximal, pooled, **window, letters=text)
        yield case(f"MaxPool{suffix}GradGrad", image, maximal, N.single(*image.shape), **window, letters=text)
    window = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "SAME"}
    image = N.single(5, 4, 4, 6)
    yield case("MaxPool", image, **{**window, "ksize": [1, 1, 1, 2], "strides": [1, 1, 1, 2]}, letters="abc.->abc.")
    yield case("MaxPoolWithArgmax", image, **window, letters="b...->b...,b...")
    yield case("MaxPoolWithArgmax", image, **window, include_batch_in_index=True, letters="....->....,....")


def losses() -> Iterator[Case]:
    logits, ids = N.real(5, 4), N.below(4, 5)
    for op in ("Softmax", "LogSoftmax"):
        yield case(op, N.real(5, 6, 4), letters="AB.->AB.")
    yield case("SparseSoftmaxCrossEntropyWithLogits", logits, ids, letters="A.,A->A,A.")
    yield case("SoftmaxCrossEntropyWithLogits", logits, N.positive(5, 4), letters="A.,A.->A,A.")
    yield case("SoftmaxCrossEntropyWithLogits", logits, N.positive(1, 4), letters="A.,..->A,A.")
    yield case("BiasAdd", N.real(5, 6, 4), N.real(4), letters="abc,c->abc")
    yield case("BiasAdd", N.real(5, 6, 4, 4), N.real(6), data_format="NCHW", letters="abcd,b->abcd")
    yield case("BiasAddV1", N.real(5, 4), N.real(4), letters="ab,b->ab")
    yield case("BiasAddGrad", N.real(5, 6, 4), letters="abc->c")
    yield case("BiasAddGrad", N.real(5, 6, 4, 4), data_format="NCHW", letters="abcd->b")
    image = N.single(5, 4, 4, 6)
    yield case("LRN", image, letters="ABC.->ABC.")
    yield case("LRNGrad", N.single(5, 4, 4, 6), image, N.single(5, 4, 4, 6), letters="ABC.,ABC.,ABC.->ABC.")
    low, high = -N.positive(4).astype(np.float32), N.positive(4).astype(np.float32)
    x, y = N.single(5, 4), N.single(5, 4)
    yield case("FakeQuantWithMinMaxVarsPerChannel", x, low, high, letters="Ac,c,c->Ac")
    yield case("FakeQuantWithMinMaxVarsGradient", x, y, low[0], high[0], letters="AB,AB,,->AB,,")
    yield case("FakeQuantWithMinMaxVarsPerChannelGradient", x, y, low, high, letters="Ac,Ac,c,c->Ac,c,c")


def images() -> Iterator[Case]:
    image, other = N.single(5, 4, 4, 6), N.single(5, 8, 8, 6)
    for op in ("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea"):
        yield case(op, image, [8, 3], letters="b..c,.->b..c")
    for op in ("ResizeBilinearGrad", "ResizeBicubicGrad"):
        yield case(op, other, image, letters="b..c,b..c->b..c")
    yield case("ResizeNearestNeighborGrad", other, [3, 3], letters="b..c,.->b..c")
    scale, shift = np.asarray([1.5, 2.0], np.float32), np.asarray([0.5, 0.0], np.float32)
    yield case("ScaleAndTranslate", image, [8, 8], scale, shift, letters="b..c,.,.,.->b..c")
    yield case("ScaleAndTranslateGrad", other, image, scale, shift, letters="b..c,b..c,.,.->b..c")
    turn = np.asarray([[0.9, 0.1, 0.2, -0.1, 1.1, 0, 0, 0]], np.float32)
    turns, nearest = np.repeat(turn, 5, 0), Attrs(interpolation="NEAREST")
    yield case("ImageProjectiveTransformV2", image, turns, [3, 3], **nearest, letters="b..c,b.,.->b..c")
    yield case("ImageProjectiveTransformV3", image, turn, [3, 3], N.single(), **nearest, letters="b..c,..,.,->b..c")
    boxes = N.positive(7, 4).astype(np.float32)
    yield case("CropAndResize", image, boxes, N.below(5, 7), [3, 3], letters="...c,m.,m,.->m..c")
    yield case("CropAndResize", image, 2 * boxes, N.below(5, 7), [3, 3], extrapolation_value=1.0)
    found, of = N.single(7, 3, 3, 6), N.below(5, 7)
    like: Attrs = {"T": tf.float32, "letters": "m..c,m.,m,.->...c"}
    yield case("CropAndResizeGradImage", found, boxes, of, [5, 4, 4, 6], **like)
    yield case("CropAndResizeGradBoxes", found, image, boxes, of, letters="m..c,...c,m.,m->m.")
    yield case("AdjustContrastv2", N.single(5, 4, 4, 3), N.single(), letters="A...,->A...")
    for op in ("AdjustHue", "AdjustSaturation"):
        yield case(op, np.abs(N.single(5, 4, 4, 3)), np.abs(N.single()), letters="ABC.,->ABC.")
    for op in ("RGBToHSV", "HSVToRGB"):
        yield case(op, N.positive(5, 4, 3), letters="AB.->AB.")


LAYERS = (*products(), *convolutions(), *pools(), *losses(), *images())
