"""Rules of what layers are made of: products of matrices, convolutions, pooling, softmax and losses, images.

Of an image the batch `b` and the channels `c` pass, wherever `data_format` has them; its places are whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from whale_tf.ir.graph import Shape
from whale_tf.plan import work
from whale_tf.plan.kinds import LETTERS, WHOLE_DIM, Kind, Rule, RuleOf, TypedNode, equation, table


def _matmul(typed: TypedNode) -> Rule | None:
    """`ak,kb->ab`, each operand turned if it is given so; leading dims are broadcast."""
    left = typed.attribute("transpose_a", False) or typed.attribute("adj_x", False)
    right = typed.attribute("transpose_b", False) or typed.attribute("adj_y", False)
    return equation(f"{'zka' if left else 'zak'},{'zbk' if right else 'zkb'}->zab")(typed)


def _sparse_matmul(typed: TypedNode) -> Rule | None:
    """The stored values `s` of a matrix, times a dense one."""
    dense = "n." if typed.attribute("adjoint_b", False) else ".n"
    return equation(f"s.,s,.,{dense}->.n")(typed)


def _einsum(typed: TypedNode) -> Rule | None:
    """Its own equation; a label twice in one term is a diagonal, and whole everywhere."""
    left, arrow, right = typed.attribute("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(typed.inputs):
        return None
    shapes = [*(kind.shape for kind in typed.inputs), typed.output()]
    labels = [work.labelled(term, shape) for term, shape in zip([*terms, right], shapes, strict=True)]
    sizes: dict[str, set[int | None]] = {}
    for named, shape in zip(labels, shapes, strict=True):
        for label, size in zip(named, shape, strict=True):
            sizes.setdefault(label, set()).add(size)
    diagonal = {label for named in labels for label, count in Counter(named).items() if count > 1}
    passes = {label for label in sizes if label not in diagonal and len(sizes[label] - {1}) <= 1}
    letters = dict(zip(sizes, LETTERS + LETTERS.upper(), strict=False))

    def written(named: Sequence[str], shape: Shape) -> str:
        repeated = [size == 1 and sizes[label] != {1} for label, size in zip(named, shape, strict=True)]
        return "".join(
            letters[label] if label in passes and not spread else WHOLE_DIM
            for label, spread in zip(named, repeated, strict=True)
        )

    names = tuple(map(written, labels, shapes))
    return Rule(names[:-1], names[-1:], linear=frozenset(range(len(terms))))


# Convolutions.


_FIRST, _LAST = ("NCHW", "NCDHW", "CHANNELS_FIRST"), ("NHWC", "NDHWC", "CHANNELS_LAST")


def _image(rank: int, typed: TypedNode, channels: str = "c") -> str:
    """The letters of an image of this rank."""
    places = WHOLE_DIM * (rank - 2)
    first = typed.attribute("data_format", "NHWC") in _FIRST
    return f"b{channels}{places}" if first else f"b{places}{channels}"


def _convolution(input_at: int, filter_at: int, output_at: int) -> RuleOf:
    """`b..c,..co->b..o`: what the window holds times the filter, summed over the channels.

    With groups of channels these are whole; formats that pack several into one have no rule.

    Args:
      input_at, filter_at, output_at: which inputs these are, or their gradients; -1 is the output of the node.
    """

    def rule(typed: TypedNode) -> Rule | None:
        image, window, result = (
            typed.output() if position < 0 else typed.input(position) for position in (input_at, filter_at, output_at)
        )
        rank = len(window)
        plain = typed.attribute("data_format", "NHWC") in _FIRST + _LAST and typed.attribute("batch_dims", 1) == 1
        if not plain or len(image) != rank or len(result) != rank:
            return None
        one_group = image[_image(rank, typed).index("c")] == window[-2] != -1
        channels, out = ("c", "o") if one_group else (WHOLE_DIM, WHOLE_DIM)
        names = {
            input_at: _image(rank, typed, channels),
            filter_at: WHOLE_DIM * (rank - 2) + channels + out,
            output_at: _image(rank, typed, out),
        }
        return _placed(typed, names)

    return rule


def _placed(typed: TypedNode, names: Mapping[int, str]) -> Rule:
    """A rule of these letters by position; -1 is the output, and an input that only says its sizes."""
    inputs = []
    for position, kind in enumerate(typed.inputs):
        name = names.get(position, names[-1])
        inputs.append(name if len(name) == len(kind.shape) else typed.whole(position))
    return Rule(tuple(inputs), (names[-1],))


def _depthwise(input_at: int, filter_at: int, output_at: int) -> RuleOf:
    """`b..c,..c.->b..c`, where each channel gives one; of several, the output's channels are whole."""

    def rule(typed: TypedNode) -> Rule | None:
        rank = len(typed.output())
        multiplier = (typed.output() if filter_at < 0 else typed.input(filter_at))[-1]
        channels = "c" if multiplier == 1 else WHOLE_DIM
        image = _image(rank, typed, channels)
        return _placed(typed, {input_at: image, filter_at: f"..{channels}.", output_at: image})

    return rule


def _pooled(typed: TypedNode) -> Rule | None:
    """Dims with a window of one element pass, in all tensors that are images."""
    window, strides = typed.attribute("ksize", ()), typed.attribute("strides", ())
    name = "".join(
        letter if size == stride == 1 else WHOLE_DIM
        for letter, size, stride in zip(LETTERS, window, strides, strict=False)
    )
    if len(name) != len(typed.output()):
        return None
    images = [name if len(kind.shape) == len(name) else typed.whole(at) for at, kind in enumerate(typed.inputs)]
    return Rule(tuple(images), (name,))


def _pooled_with_places(typed: TypedNode) -> Rule | None:
    """A place counts channels, and examples too if it is said so."""
    return equation("....->....,...." if typed.attribute("include_batch_in_index", False) else "b...->b...,b...")(typed)


def _biased(typed: TypedNode) -> Rule:
    rank = len(typed.input(0))
    channel = 1 if typed.attribute("data_format", "NHWC") == "NCHW" and rank > 1 else rank - 1
    name = LETTERS[:rank]
    return Rule((name, name[channel]), (name,))


def _bias_gradient(typed: TypedNode) -> Rule:
    rank = len(typed.input(0))
    channel = 1 if typed.attribute("data_format", "NHWC") == "NCHW" else rank - 1
    return Rule((LETTERS[:rank],), (LETTERS[channel],))


def _projected(typed: TypedNode) -> Rule | None:
    """One transform for each image, or one for all."""
    transforms = "b." if typed.input(1)[:1] == typed.input(0)[:1] != (1,) else ".."
    rest = ",*" * (len(typed.inputs) - 2)
    return equation(f"b..c,{transforms}{rest}->b..c")(typed)


def _cropped(typed: TypedNode) -> Rule | None:
    """Each box `m` is cut from one of the images."""
    rule = equation("...c,m.,m,.->m..c")(typed)
    outside = typed.attribute("extrapolation_value", 0.0)
    return rule if rule is None or outside else replace(rule, linear=frozenset({0}))


LAYERS: Mapping[str, Kind] = table(
    {
        "MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 SparseMatMul": Kind(_matmul, linear=(0, 1), work=work.matmul),
        "SparseTensorDenseMatMul": Kind(_sparse_matmul, linear=(1, 3), shapes=(2,), work=work.sparse_matmul),
        "Einsum": Kind(_einsum, work=work.einsum),
        "BiasAdd BiasAddV1": Kind(_biased, additive=(0, 1)),
        "BiasAddGrad": Kind(_bias_gradient, linear=(0,), work=work.per_input(0)),
        # tf.nn.conv1d makes a Conv2D.
        "Conv Conv2D Conv3D": Kind(_convolution(0, 1, -1), linear=(0, 1), work=work.convolution),
        "Conv2DBackpropInput Conv3DBackpropInputV2": Kind(
            _convolution(-1, 1, 2), linear=(1, 2), shapes=(0,), work=work.convolution_input_gradient
        ),
        "Conv2DBackpropInputV2 Conv3DBackpropInput": Kind(
            _convolution(-1, 1, 2), linear=(1, 2), work=work.convolution_input_gradient
        ),
        "Conv2DBackpropFilter Conv3DBackpropFilterV2": Kind(
            _convolution(0, -1, 2), linear=(0, 2), shapes=(1,), work=work.convolution_filter_gradient
        ),
        "Conv2DBackpropFilterV2 Conv3DBackpropFilter": Kind(
            _convolution(0, -1, 2), linear=(0, 2), work=work.convolution_filter_gradient
        ),
        "DepthwiseConv2dNative": Kind(_depthwise(0, 1, -1), linear=(0, 1), work=work.depthwise),
        "DepthwiseConv2dNativeBackpropInput": Kind(
            _depthwise(-1, 1, 2), linear=(1, 2), shapes=(0,), work=work.depthwise_input_gradient
        ),
        "DepthwiseConv2dNativeBackpropFilter": Kind(
            _depthwise(0, -1, 2), linear=(0, 2), shapes=(1,), work=work.depthwise_filter_gradient
        ),
        "Dilation2D": Kind(equation("b..c,..c->b..c")),
        "Dilation2DBackpropInput": Kind(equation("b..c,..c,b..c->b..c"), linear=(2,)),
        "Dilation2DBackpropFilter": Kind(equation("b..c,..c,b..c->..c"), linear=(2,)),
        # Pooling.
        "MaxPool MaxPool3D": Kind(_pooled, powers={0: 1}, work=work.pool),
        "AvgPool AvgPool3D": Kind(_pooled, linear=(0,), work=work.pool),
        "MaxPoolGrad MaxPool3DGrad": Kind(_pooled, linear=(2,), work=work.pool_gradient),
        "MaxPoolGradGrad MaxPool3DGradGrad": Kind(_pooled, linear=(2,)),
        "AvgPoolGrad AvgPool3DGrad": Kind(_pooled, linear=(1,), shapes=(0,), work=work.pool_gradient),
        "MaxPoolWithArgmax": Kind(_pooled_with_places),
        "LRN": Kind(equation("z.->z.")),
        "LRNGrad": Kind(equation("z.,z.,z.->z."), linear=(0,)),
        "FakeQuantWithMinMaxVarsPerChannel": Kind(equation("zc,c,c->zc")),
        "FakeQuantWithMinMaxVarsGradient": Kind(equation("z,z,,->z,,"), linear=(0,)),
        "FakeQuantWithMinMaxVarsPerChannelGradient": Kind(equation("zc,zc,c,c->zc,c,c"), linear=(0,)),
        # Softmax: largest, subtract, exponential, sum, divide (or subtract its logarithm). The losses: that, the
        # product with the labels and its sum, and the gradient that the op gives beside the loss.
        "Softmax LogSoftmax": Kind(equation("z.->z."), work=work.per_input(0, 5.0)),
        "SoftmaxCrossEntropyWithLogits": Kind(equation("z.,z.->z,z."), work=work.per_input(0, 8.0)),
        "SparseSoftmaxCrossEntropyWithLogits": Kind(equation("z.,z->z,z."), work=work.per_input(0, 8.0)),
        # Images.
        "ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea": Kind(
            equation("b..c,.->b..c"), linear=(0,), shapes=(1,)
        ),
        "ResizeBilinearGrad ResizeBicubicGrad": Kind(equation("b..c,b..c->b..c"), linear=(0,)),
        "ResizeNearestNeighborGrad": Kind(equation("b..c,.->b..c"), linear=(0,), shapes=(1,)),
        "ScaleAndTranslate": Kind(equation("b..c,.,.,.->b..c"), linear=(0,), shapes=(1,)),
        "ScaleAndTranslateGrad": Kind(equation("b..c,b..c,.,.->b..c"), linear=(0,)),
        "ImageProjectiveTransformV2 ImageProjectiveTransformV3": Kind(_projected, shapes=(2,)),
        "CropAndResize": Kind(_cropped, shapes=(3,)),
        "CropAndResizeGradImage": Kind(equation("m..c,m.,m,.->...c"), linear=(0,), shapes=(3,)),
        "CropAndResizeGradBoxes": Kind(equation("m..c,...c,m.,m->m."), linear=(0, 1)),
        "AdjustContrastv2": Kind(equation("z...,->z..."), linear=(0,)),
        "AdjustHue AdjustSaturation": Kind(equation("z.,->z.")),
        "RGBToHSV HSVToRGB": Kind(equation("z.->z.")),
    }
)
