"""Which ONNX operators and opsets TensorRT's parser reads, by version: NVIDIA's published lists as data.

Source: docs/operators.md of github.com/onnx/onnx-tensorrt, branches release/8.2-GA, 8.5-GA, 8.6-GA and 10.1-GA, and
NVIDIA's ONNX opset guide for TensorRT 11. A version in between reads at least what the one before it reads.
"""

from __future__ import annotations

import re

Version = tuple[int, int]

OPSETS: dict[Version, int] = {(8, 2): 13, (8, 5): 17, (8, 6): 17, (10, 0): 20, (11, 0): 25}
"""Newest opset by the first version that reads it."""
_FIRST = (
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip "
    "Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout "
    "Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool "
    "GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity If ImageScaler InstanceNormalization IsNaN "
    "LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean Min Mul "
    "Neg NonMaxSuppression Not Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN RandomUniform RandomUniformLike "
    "Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Reshape Resize ReverseSequence Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu "
    "Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh "
    "ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where"
)
_LATER: dict[Version, str] = {
    (8, 5): "GridSample MeanVarianceNormalization NonZero RandomNormal RandomNormalLike Reciprocal RoiAlign Shrink "
    "Trilu Xor",
    (8, 6): "GroupNormalization HardSwish IsInf LayerNormalization Mod OneHot",
    (10, 0): "CastLike DeformConv Gelu Hardmax Mish",
}
SINCE: dict[str, Version] = {
    **dict.fromkeys(_FIRST.split(" "), (8, 2)),
    **{op: version for version, ops in _LATER.items() for op in ops.split(" ")},
}
"""First version with an importer of the operator, 8.2 for all earlier ones."""
_REFUSED = (
    "AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow CenterCropPad Col2Im "
    "Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear HammingWindow HannWindow ImageDecoder "
    "MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional "
    "OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch STFT SequenceAt "
    "SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap "
    "SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique"
)
REFUSED = frozenset(_REFUSED.split(" "))
"""Listed as not supported by 10.1, the newest list at hand."""
NEWEST_LIST: Version = (10, 1)


def versions_in(words: str) -> tuple[Version, ...]:
    """The versions that a card's words name, ascending, remarks in parentheses left out: `8.6 (JetPack 6.0), 10.3`."""
    plain = re.sub(r"\([^)]*\)", "", words)
    return tuple(sorted({(int(major), int(minor)) for major, minor in re.findall(r"(\d+)\.(\d+)", plain)}))


def newest_opset(version: Version) -> int:
    """The newest opset that a version reads; that of the oldest in the table for older ones."""
    known = [opset for first, opset in OPSETS.items() if first <= version]
    return known[-1] if known else min(OPSETS.values())


def text_of(version: Version) -> str:
    """`10.3`."""
    return f"{version[0]}.{version[1]}"
