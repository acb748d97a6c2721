"""Live objects recognised by the names of their classes, saved by their own framework, left as they were."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from trueport.errors import UsageError
from trueport.live import KINDS, save_live


def fake_class(module, name, bases=(object,), **members):
    return type(name, bases, {"__module__": module, **members})


@pytest.fixture
def framework(monkeypatch):
    """framework(name) puts an empty module of that name among the loaded ones, with a version."""

    def load(name, **members):
        module = types.ModuleType(name)
        module.__version__ = "9.8"
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return load


def writer(text):
    def save(self, path, *args, **kwargs):
        with open(path, "w") as file:  # noqa: PTH123 - as a framework would
            file.write(text)

    return save


def keras_model(base_package="keras", **members):
    base = fake_class(
        f"{base_package}.src.models.model", "Model", save=writer("saved"), export=writer("exported"), **members
    )
    return fake_class(f"{base_package}.src.models.functional", "Functional", (base,))


@pytest.mark.parametrize(
    ("package", "file", "format"), [("keras", "model.keras", "keras"), ("tf_keras", "model.h5", "keras")]
)
def test_keras_models_are_saved_whole(tmp_path, framework, package, file, format):
    framework(package)
    saved = save_live(keras_model(package)(), None, tmp_path / "out")
    assert saved.path == tmp_path / "out" / file
    assert saved.path.read_text() == "saved"
    assert saved.format == format
    assert saved.versions[package] == "9.8"
    assert saved.versions["python"] == sys.version.split()[0]
    assert [item.name for item in (tmp_path / "out").iterdir()] == [file], "nothing partial is left"


def test_a_keras_model_of_ones_own_class_is_exported(tmp_path, framework):
    framework("keras")
    own = fake_class("my.package", "Mine", (keras_model(),))
    notes = []
    path, format, versions = save_live(own(), None, tmp_path, note=notes.append)
    assert (path.read_text(), format) == ("exported", "savedmodel")
    assert notes == ["Mine is a class of your own, so the model was exported as a SavedModel"]
    assert "keras" in versions


def test_an_own_layer_inside_is_seen(tmp_path, framework):
    framework("keras")
    layer = fake_class("my.package", "Layer")()
    model = keras_model(_flatten_layers=lambda self: [layer])()
    assert save_live(model, None, tmp_path).format == "savedmodel"


def test_an_unbuilt_keras_model_is_called_once_or_refused(tmp_path, framework):
    framework("keras")
    calls = []
    members = {"built": False, "__call__": lambda self, x, training: calls.append((x, training))}
    with pytest.raises(UsageError, match="call it once"):
        save_live(keras_model(**members)(), None, tmp_path / "a")
    save_live(keras_model(**members)(), 5, tmp_path / "b")
    assert calls == [(5, False)]


def test_the_most_special_class_decides(tmp_path, framework):
    """A ScriptModule is a Module too; it must not be exported again."""
    framework("torch")
    module = fake_class("torch.nn.modules.module", "Module", modules=lambda self: [self], eval=lambda self: None)
    script = fake_class("torch.jit._script", "ScriptModule", (module,), save=writer("script"), training=False)
    saved = save_live(fake_class("torch.jit._script", "RecursiveScriptModule", (script,))(), None, tmp_path)
    assert (saved.path.name, saved.format) == ("model.pt", "torchscript")


def test_a_torch_module_needs_example_inputs(tmp_path, framework):
    framework("torch")
    module = fake_class("torch.nn.modules.module", "Module")
    with pytest.raises(UsageError, match="needs example inputs"):
        save_live(fake_class("my.net", "Net", (module,))(), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_framework_that_fails_to_save_is_a_usage_error_and_leaves_nothing(tmp_path, framework):
    framework("keras")

    def fail(self, path):
        with open(path, "w") as file:  # noqa: PTH123
            file.write("half")
        raise RuntimeError("first line\nsecond line")

    base = fake_class("keras.src.models.model", "Model", save=fail)
    with pytest.raises(
        UsageError, match=r"Model could not be saved as keras.*RuntimeError: first line\); save it yourself"
    ):
        save_live(base(), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_replaced(tmp_path, framework):
    framework("keras")
    (tmp_path / "model.keras").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        save_live(keras_model()(), None, tmp_path)
    assert (tmp_path / "model.keras").read_text() == "precious"
    assert [item.name for item in tmp_path.iterdir()] == ["model.keras"]


def _proto(size=0, outside=False):
    tensor = types.SimpleNamespace(name="w", data_location=1 if outside else 0, raw_data=bytes(size))
    cls = fake_class("onnx.onnx_ml_pb2", "ModelProto", CopyFrom=lambda self, other: vars(self).update(vars(other)))
    proto = cls()
    proto.graph = types.SimpleNamespace(initializer=[tensor])
    return proto


@pytest.fixture
def onnx(framework):
    saved = []

    def save_model(proto, path, **options):
        saved.append((proto, options))
        writer("onnx")(None, path)
        if "location" in options:
            writer("weights")(None, f"{path.rpartition('/')[0]}/{options['location']}")

    module = framework("onnx", save_model=save_model, TensorProto=types.SimpleNamespace(EXTERNAL=1))
    module.saved = saved
    return module


def test_onnx_small_and_large(tmp_path, onnx, monkeypatch):
    proto = _proto(100)
    onnx.ModelProto = type(proto)
    assert save_live(proto, None, tmp_path / "a").path.read_text() == "onnx"
    monkeypatch.setattr("trueport.live.ONNX_LIMIT", 50)
    out = save_live(proto, None, tmp_path / "b").path
    assert sorted(item.name for item in out.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    given, options = onnx.saved[-1]
    assert given is not proto, "saving with external data rewrites the tensors it is given"
    assert options["location"] == "model.onnx.data"


def test_onnx_with_data_outside_is_refused(tmp_path, onnx):
    with pytest.raises(UsageError, match=r"external data.*\(w\); load it with onnx\.load"):
        save_live(_proto(outside=True), None, tmp_path)


@pytest.mark.parametrize("obj", [5, "text", [1], object(), fake_class("keras.src.models.model", "Model")()])
def test_other_objects_are_refused_with_what_is_taken(tmp_path, obj):
    """The last is a Keras model by name, whose framework is not loaded: nothing is imported on its behalf."""
    with pytest.raises(UsageError, match=r"is not a model that can be taken; give a path, torch\.nn\.Module"):
        save_live(obj, None, tmp_path)
    assert "keras" not in sys.modules


def test_the_message_names_every_kind_in_the_table(tmp_path):
    with pytest.raises(UsageError) as caught:
        save_live(5, None, tmp_path)
    for kind in KINDS:
        if kind.name not in ("ConcreteFunction", "AutoTrackable", "Function"):
            assert kind.name in str(caught.value)


def test_importing_brings_no_framework_and_little_else():
    code = "import sys, trueport.live; print([n for n in ('torch','tensorflow','keras','onnx','PIL','trueport.feeds') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
