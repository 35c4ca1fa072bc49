"""The operators that a graph may have, and why others are left out.

What exporters, ONNX Runtime's optimizers and its quantizers write is in; an operator that is not here is
refused by name. Version by version what an operator is called does not change here, so the list is by domain.

Left out, by reason:

- **text**: RegexFullMatch, StringConcat, StringNormalizer, StringSplit, Tokenizer, WordConvEmbedding, and
  every use of the element type string (a Cast to it, a constant of it): a string lies outside ONNX Runtime's
  arena, so no limit of memory holds for it, and a loop that doubles one takes all there is. TfIdfVectorizer,
  MurmurHash3 and the hashes of n-grams exist for text.
- **files and foreign formats**: EPContext and Snpe hold or name a program compiled for one device, which its
  driver runs; ImageDecoder gives bytes to decoders of JPEG, PNG, TIFF and WebP.
- **foreign code**: operators of Python, of custom libraries, `org.pytorch.aten`.
- **a whole generation in one node**: BeamSearch, GreedySearch, Sampling, WhisperBeamSearch: loops with graphs
  inside, which cannot be stopped between steps. Loop, Scan and If are here; they can.
- **writes to its inputs**: PagedAttention and its kin, DecoderMasked*, the operators that replay or commit a
  state: they are made for caches in place, and what a node stores is not theirs to write.
- **layouts of one processor**: `com.microsoft.nchwc`, `com.ms.internal.nhwc`, QOrdered*: ONNX Runtime makes
  them itself when it loads a graph; a file with them runs on no other box.
- **what one model alone has**: AttnLSTM, BifurcationDetector, DynamicTimeWarping, EngramGate, SampleOp and
  the like; what people bring that has one is a reason to add it.
- **deprecated**: Scatter, Upsample; their successors ScatterElements and Resize are here.
- **maps and dictionaries** (`ai.onnx.ml`): CastMap, CategoryMapper, DictVectorizer, ZipMap: no tensors.
- **training**: `ai.onnx.training` and `ai.onnx.preview*`: gradients are graphs of plain operators here.
- **opset 27**, which ONNX Runtime does not read yet.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DOMAINS", "LAYOUTS", "OPERATORS", "REPLACED", "of_operators", "standard"]

_STANDARD = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow
    Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat ConcatFromSequence Constant
    ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum
    DFT DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear
    Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor
    GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization
    HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN
    LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool
    MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min
    Mish Mod Mul Multinomial Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not
    OneHot Optional OptionalGetElement OptionalHasElement Or PRelu Pad Pow QLinearConv QLinearMatMul
    QuantizeLinear
    RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
    Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round
    STFT Scan ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase
    SequenceInsert SequenceLength SequenceMap Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze Sub Sum Swish
    Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Where Xor
"""

# Fused by ONNX Runtime's optimizers, written by its quantizers and by the builders of language models; and
# what exporters wrote before ONNX had it (Gelu, GridSample, Inverse, Pad, Trilu, Unique).
_MICROSOFT = """
    Attention BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu BranchwiseRMSNorm CDist
    CausalConvWithState CropAndResize
    DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul EmbedLayerNormalization ExpandDims
    FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation
    GatedAdd GatedDeltaNet GatedRMSNorm GatedRelativePositionBias GatherBlockQuantized GatherND
    Gelu GemmFastGelu GemmaRotaryEmbedding GridSample
    GroupNorm GroupQueryAttention Inverse LinearAttention LinearAttentionGate
    LongformerAttention MRotaryEmbedding
    MatMulBnb4 MatMulFpQ4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MoE MulInteger MultiHeadAttention
    NhwcConv NhwcFusedConv NhwcMaxPool PackedAttention PackedMultiHeadAttention Pad
    QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax
    QLinearWhere QMoE QuantizeLinear QuickGelu Range ReduceSumInteger RelativePositionBias RemovePadding
    RestorePadding RotaryEmbedding SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization
    SparseAttention TransposeMatMul Trilu Unique
"""

# Preparation of tables and trees, as scikit-learn's converters write them; without maps and text.
_ML = """
    ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier LinearRegressor
    Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier
    TreeEnsembleRegressor
"""

OPERATORS: Mapping[str, frozenset[str]] = {
    # SimplifiedLayerNormalization is ONNX Runtime's own, in ONNX's domain: its optimizers fuse it.
    "": frozenset((*_STANDARD.split(), "SimplifiedLayerNormalization")),
    "ai.onnx.ml": frozenset(_ML.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}
"""Domain to names of operators; the domain `ai.onnx` is the empty one."""

REPLACED = frozenset({"Scatter", "Upsample"})
"""Operators of old versions that a model may have which is raised to a new one before it runs."""

LAYOUTS = frozenset({"com.microsoft.nchwc", "com.ms.internal.nhwc"})
"""Domains of operators in the layout of one processor."""

DOMAINS: Mapping[str, tuple[int, int]] = {"": (13, 26), "ai.onnx.ml": (1, 5), "com.microsoft": (1, 1)}
"""Domain to the first and the last version of its operators."""


_TAKEN = ("ai.onnx", "ai.graphcore", "com.microsoft", "com.ms", "com.xilinx", "org.pytorch")
"""Whoever reads a graph has operators there, or may have with its next release: ONNX Runtime takes its own
operator (com.microsoft.nchwc has eight) rather than the file's function of that name."""


def of_operators(domain: str) -> bool:
    """Whether a domain is one of operators, listed or not, or lies in one: no file has functions there."""
    return not domain or any(domain == taken or domain.startswith(f"{taken}.") for taken in _TAKEN)


def standard(domain: str) -> str:
    """The domain as it is called here: ONNX's own has two names."""
    return "" if domain == "ai.onnx" else domain
