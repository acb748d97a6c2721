"""Which inputs, pairs and conversions the corpus trial consists of, and why each result that is not faithful is what it is.

Data only. Paths are relative to the corpus: models under `models/`, inputs under `images/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REFUSED: Mapping[str, str] = {
    "slim_portrait/slim_reshape.h5": (
        "Nobody can load this file: three of its Lambda layers are byte code of an old Python that calls a function "
        "`bilinear_resize` of the notebook that trained it, which the file does not hold."
    ),
    "resnet_cifar/resnet20-12fca82f.th": "Weights only: runs as `torch_models:resnet20` with `--checkpoint`, see below.",
    "resnet_cifar/resnet32-d509ac18.th": "Weights only: runs as `torch_models:resnet32` with `--checkpoint`, see below.",
}
"""Models that are to be refused with one sentence, and the reason in ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What to feed: a folder of the corpus with a preprocessing, arrays made by a named function, or (neither) generated."""

    folder: str | None = None
    preprocess: str | None = None
    limit: int | None = None
    made: str | None = None
    """"speech", "windows", "spectra" or "digits", see `corpus.MADE`."""
    note: str = "generated"


PHOTOS = "photographs"
UNIT = "scale=1/255"
CENTRED = "scale=2/255,offset=-1"
IMAGENET = f"{UNIT},mean=0.485/0.456/0.406,std=0.229/0.224/0.225,layout=NCHW"

GENERATED = Inputs()
CIFAR = Inputs(folder="cifar10", preprocess="size=32x32", note="500 CIFAR-10 images, 0 to 255")
CIFAR_TORCH = Inputs(folder="cifar10", preprocess=f"size=32x32,{IMAGENET}", note="500 CIFAR-10 images, normalised")
SPECTRA = Inputs(made="spectra", note="spectra of synthetic voiced sound, random states")
FRAMES = Inputs(made="frames", note="512 samples of synthetic voiced sound, random states")
SPEECH = Inputs(made="speech", note="64 + 512 samples of synthetic voiced sound, random states")
WINDOWS = Inputs(made="windows", note="512 samples of synthetic voiced sound")
FEATURES = Inputs(made="features", note="64 spectrograms of synthetic voiced sound, 0 to 1")
QUIET = Inputs(made="quiet", note="the same spectrograms times 0.8")
DIGITS = Inputs(made="digits", note="the three recorded digits")


def photos(size: str, how: str, limit: int = 24) -> Inputs:
    """Photographs, the middle cut out, at `size`."""
    return Inputs(
        folder="imagenet",
        preprocess=f"size={size},crop=center,{how}".rstrip(","),
        limit=limit,
        note=f"{limit} photographs, {size}",
    )


GIVEN: Mapping[str, Inputs] = {"silero_vad/silero_vad.jit": WINDOWS}
"""Models whose inputs cannot be generated, because the file does not tell their rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Source and twin. `rewrite`: a function of `corpus_models` that the source goes through first."""

    source: str
    target: str
    inputs: Inputs = GENERATED
    rewrite: tuple[str, str, str] | None = None
    """(toolchain, function, name of the file it makes)."""
    slow: bool = False

    @property
    def name(self) -> str:
        """The key of the explanations."""
        folder, _, source = self.source.partition("/")
        rewritten = " (rewritten)" if self.rewrite else ""
        return f"{folder}: {source}{rewritten} -> {self.target.partition('/')[2]} ({self.inputs.note})"


RESNET, VWW, WAKE = (
    "mlperf_tiny_resnet8/pretrainedResnet",
    "mlperf_tiny_vww/vww_96",
    "mlperf_tiny_wakeword/str_ww_ref_model",
)
PERSON = photos("96x96", UNIT)
PORTRAIT = photos("512x512", UNIT, 8)
SILERO = "silero_vad/silero_vad"

PAIRS = (
    Pair(source=f"{RESNET}.h5", target=f"{RESNET}.tflite", inputs=CIFAR),
    Pair(source=f"{RESNET}.h5", target=f"{RESNET}_quant.tflite", inputs=CIFAR),
    Pair(source=f"{RESNET}.tflite", target=f"{RESNET}_quant.tflite", inputs=CIFAR),
    Pair(source=f"{VWW}.h5", target=f"{VWW}_float.tflite", inputs=PERSON),
    Pair(source=f"{VWW}.h5", target=f"{VWW}_int8.tflite", inputs=PERSON),
    Pair(source=f"{VWW}_float.tflite", target=f"{VWW}_int8.tflite", inputs=PERSON),
    Pair(source=f"{WAKE}.h5", target=f"{WAKE}.tflite", inputs=FEATURES),
    Pair(source=f"{WAKE}.h5", target=f"{WAKE}.tflite", inputs=QUIET),
    Pair(source=f"{WAKE}.h5", target=f"{WAKE}.tflite"),
    Pair(source="dtln/model_1.onnx", target="dtln/model_1.tflite", inputs=SPECTRA),
    Pair(source="dtln/model_1.onnx", target="dtln/model_quant_1.tflite", inputs=SPECTRA),
    Pair(source="dtln/model_1.tflite", target="dtln/model_quant_1.tflite", inputs=SPECTRA),
    Pair(source="dtln/model_2.onnx", target="dtln/model_2.tflite", inputs=FRAMES),
    Pair(source=f"{SILERO}.jit", target=f"{SILERO}.onnx", inputs=WINDOWS),
    Pair(source=f"{SILERO}.jit", target=f"{SILERO}_16k_op15.onnx", inputs=WINDOWS),
    Pair(
        source=f"{SILERO}.jit",
        target=f"{SILERO}.onnx",
        inputs=SPEECH,
        rewrite=("torch", "silero_core", "core.pt"),
    ),
    Pair(source=f"{SILERO}.onnx", target=f"{SILERO}_16k_op15.onnx", inputs=SPEECH),
    Pair(
        source="slim_portrait/slim_reshape.h5",
        target="slim_portrait/slim_reshape.tflite",
        inputs=PORTRAIT,
        rewrite=("tf-keras", "slim_savedmodel", "slim"),
        slow=True,
    ),
    Pair(source="slim_portrait/slim_reshape.h5", target="slim_portrait/slim_reshape.tflite", inputs=PORTRAIT),
    Pair(source="sinet_portrait/SINet.onnx", target="sinet_portrait/SINet.mlmodel"),
    Pair(
        source="yunet/yunet_n_320_320.onnx",
        target="yunet/yunet_n_dynamic.onnx",
        inputs=photos("320x320", "order=BGR,layout=NCHW", 6),
        slow=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A model of the corpus (or `module:factory` with a checkpoint from it) to a format."""

    source: str
    to: str
    inputs: Inputs = GENERATED
    precision: str = "float32"
    checkpoint: str | None = None
    slow: bool = True

    @property
    def name(self) -> str:
        """The key of the explanations."""
        precision = "" if self.precision == "float32" else f" at {self.precision}"
        return f"{self.source} -> {self.to}{precision}"


EMOTION = "emotion_xception/fer2013_mini_XCEPTION.102-0.66.hdf5"
FACES = photos("64x64", f"order=GREY,{CENTRED}")
RESNET20 = "resnet_cifar/resnet20-12fca82f.th"
RESNET32 = "resnet_cifar/resnet32-d509ac18.th"
BLAZE = photos("128x128", CENTRED, 16)
SCENE = photos("320x320", "order=BGR,layout=NCHW", 8)
CUTOUT = photos("320x320", "order=BGR,mean=102.890434/111.25247/126.91212,std=16047.9/16019.5/16920.7,layout=NCHW", 8)
"""SINet's own: (pixel - mean) / std / 255, so values of about 0.01."""
TEXTLINE = photos("32x192", f"{CENTRED},layout=NCHW")

CONVERSIONS = (
    Conversion(source=f"{RESNET}.h5", to="onnx", inputs=CIFAR, slow=False),
    Conversion(source=f"{RESNET}.h5", to="tflite", inputs=CIFAR, slow=False),
    Conversion(source=f"{RESNET}.h5", to="tflite", inputs=CIFAR, precision="int8"),
    Conversion(source=f"{RESNET}.tflite", to="onnx", inputs=CIFAR),
    Conversion(source="torch_models:resnet20", to="onnx", inputs=CIFAR_TORCH, checkpoint=RESNET20),
    Conversion(source="torch_models:resnet20", to="tflite", inputs=CIFAR_TORCH, checkpoint=RESNET20),
    Conversion(source="torch_models:resnet32", to="onnx", inputs=CIFAR_TORCH, checkpoint=RESNET32),
    Conversion(source=EMOTION, to="onnx", inputs=FACES),
    Conversion(source=EMOTION, to="tflite", inputs=FACES),
    Conversion(source=f"{VWW}.h5", to="tflite", inputs=PERSON),
    Conversion(source=f"{WAKE}.h5", to="onnx"),
    Conversion(source="mnist_cnn/mnist_8/model.onnx", to="tflite", inputs=DIGITS),
    Conversion(source="mnist_cnn/mnist_8/model.onnx", to="pytorch", inputs=DIGITS),
    Conversion(source="sinet_portrait/SINet.onnx", to="tflite", inputs=CUTOUT),
    Conversion(source=f"{SILERO}_16k_op15.onnx", to="tflite", inputs=SPEECH),
    Conversion(source=f"{SILERO}_16k_op15.onnx", to="pytorch", inputs=SPEECH),
    Conversion(source=f"{SILERO}.jit", to="onnx", inputs=WINDOWS),
    Conversion(source="dtln/model_1.tflite", to="onnx", inputs=SPECTRA),
    Conversion(source="dtln/model_2.tflite", to="onnx", inputs=FRAMES),
    Conversion(source="dtln/model_quant_1.tflite", to="onnx", inputs=SPECTRA),
    Conversion(source="dtln/model_1.onnx", to="tflite", inputs=SPECTRA),
    Conversion(source="blazeface/face_detection_front.tflite", to="onnx", inputs=BLAZE),
    Conversion(source="tflm/person_detect.tflite", to="onnx"),
    Conversion(source="tflm/trained_lstm.tflite", to="onnx"),
    Conversion(source="movie_review/movie_review.tflite", to="onnx"),
    Conversion(source="keras2_qat_ptq/mobilenet_v1_0.25_128_quant.tflite", to="onnx"),
    Conversion(source="slim_portrait/slim_reshape.tflite", to="onnx", inputs=PORTRAIT),
    Conversion(source="angle_net/angle_net.onnx", to="tflite", inputs=TEXTLINE),
    Conversion(source="yunet/yunet_n_320_320.onnx", to="tflite", inputs=SCENE),
    Conversion(source="yunet/yunet_n_dynamic.onnx", to="tflite", inputs=SCENE),
    Conversion(source="candy_style/candy.onnx", to="tflite"),
)

NO_INT8 = (
    "LiteRT cannot run a float model as if it were int8, so what rounding alone may do is not known and neither verdict "
    "would be honest. Against the Keras source, where it can be simulated, the same int8 file is faithful"
)

EXPLAINED: Mapping[str, str] = {
    "mlperf_tiny_resnet8: pretrainedResnet.tflite -> pretrainedResnet_quant.tflite (500 CIFAR-10 images, 0 to 255)": (
        f"{NO_INT8} (2.02 times the floor, all 27 flips within it)."
    ),
    "mlperf_tiny_vww: vww_96_float.tflite -> vww_96_int8.tflite (24 photographs, 96x96)": (
        f"{NO_INT8} (1.27 times the floor)."
    ),
    "mlperf_tiny_wakeword: str_ww_ref_model.h5 -> str_ww_ref_model.tflite (64 spectrograms of synthetic voiced sound, 0 to 1)": (
        "The int8 file saturates on inputs beyond what it was calibrated for: its input ends at 0.94, and its first layer "
        "stores -0.25 to 0.26 where the float network reaches -0.34 to 0.36, which cuts off 3.2 % of the values; the error "
        "after the next layer is 16 % of the signal and stays there. The same spectrograms times 0.8 lie inside, and there "
        "the file is faithful (next line)."
    ),
    "dtln: model_1.onnx -> model_quant_1.tflite (spectra of synthetic voiced sound, random states)": (
        "Its authors' converter rounded each weight matrix with one scale for the whole matrix: all five are off by "
        "exactly what such a grid costs, 2.2 to 4.1 % of their spread, where a scale per channel, which int8-dynamic "
        "means today and which the floor simulates, costs 0.9 to 1.1 %. A true conversion, coarser than declared."
    ),
    "dtln: model_1.tflite -> model_quant_1.tflite (spectra of synthetic voiced sound, random states)": (
        "LiteRT cannot run the float model at int8-dynamic, so the floor of rounding is not known; against the ONNX twin, "
        "where it is, see the line above."
    ),
    "silero_vad: silero_vad.jit -> silero_vad.onnx (512 samples of synthetic voiced sound)": (
        "Not the same function: the TorchScript keeps the LSTM's state and the last 64 samples inside and takes (x, sr), "
        "the ONNX takes them as inputs and returns the new state. The network inside the TorchScript, taken out of that "
        "wrapper, is faithful to the ONNX (the line marked `rewritten`)."
    ),
    "silero_vad: silero_vad.jit -> silero_vad_16k_op15.onnx (512 samples of synthetic voiced sound)": (
        "As before: state and context are inside the one and inputs of the other."
    ),
    "slim_portrait: slim_reshape.h5 -> slim_reshape.tflite (8 photographs, 512x512)": (
        "The Keras file cannot be loaded by anybody (see its line among the models). With its five Lambda layers written "
        "out (the resizing with aligned corners, as the TFLite file has it) the twin is faithful (the line marked "
        "`rewritten`)."
    ),
    "mnist_cnn/mnist_8/model.onnx -> pytorch": (
        "onnx2torch does not implement `auto_pad`, which this opset 8 model uses, and there is no other step to PyTorch."
    ),
    "silero_vad/silero_vad_16k_op15.onnx -> tflite": (
        "onnx2tf reports success, but it turns the scalar input `sr` into a vector of one element and writes the LSTMs as "
        "a custom operator `ONNX_LSTM`, which no TFLite runtime has; the file stops with `Input tensor 119 lacks data`. "
        "The other routes fail at the If and at the same LSTMs."
    ),
    "silero_vad/silero_vad_16k_op15.onnx -> pytorch": "onnx2torch has no If.",
    "silero_vad/silero_vad.jit -> onnx": (
        "The file checks its sample rate with a `not` on an integer, which PyTorch's TorchScript exporter refuses."
    ),
    "tflm/person_detect.tflite -> onnx": (
        "14 one-dimensional tensors of this file name a quantisation axis of 3. LiteRT runs it all the same; tf2onnx asks "
        "TensorFlow's interpreter, which refuses."
    ),
    "tflm/trained_lstm.tflite -> onnx": (
        "The LSTM keeps its state in two variable tensors without a producer, and tf2onnx looks for one."
    ),
    "dtln/model_quant_1.tflite -> onnx": (
        "The source has int8 weights, and LiteRT's kernel sets round its dynamically quantised layers differently: 8 % of "
        "the signal between XNNPACK and the built-in kernels. The ONNX file lies exactly that far away (1 times the noise, "
        "cosine 0.9998), but over so much noise nothing is proven."
    ),
    "keras2_qat_ptq/mobilenet_v1_0.25_128_quant.tflite -> onnx": (
        "The source is an integer model, and LiteRT's kernel sets round it to other steps: its default kernels lie as far "
        "from its built-in and reference kernels as its output varies over generated inputs. The ONNX file, fed and read as "
        "integers on the source's grid, lies nearer (0.704 times that noise), but nothing can be proven over so much noise."
    ),
    "candy_style/candy.onnx -> tflite": (
        "The model uses ImageScaler, an experimental operator that ONNX has dropped. Shape inference stops there, so "
        "onnx2tf takes the rank to be 1 and refuses the Pad; onnx2torch does not know the operator."
    ),
}
"""Pair or conversion -> why it is not faithful, found by looking inside. Figures were measured on the page's own inputs."""
