"""Models that have one of every attribute worth reading. Runs inside a TensorFlow toolchain."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"


def save_settings(path):
    """A Keras model of layers with unusual settings, named after what they show."""
    import keras

    layers = keras.layers
    image = keras.Input((18, 24, 4), name="image")
    x = layers.ZeroPadding2D(((1, 2), (3, 0)), name="pad")(image)
    x = layers.Conv2D(6, (3, 5), strides=(2, 1), groups=2, activation="relu6", name="conv")(x)
    x = layers.DepthwiseConv2D(3, padding="same", dilation_rate=2, name="depth")(x)
    x = layers.BatchNormalization(epsilon=0.02, name="norm")(x)
    x = layers.LeakyReLU(0.15, name="leaky")(x)
    x = layers.ReLU(max_value=4.0, name="clip")(x)
    x = layers.ReLU(negative_slope=0.25, name="sloped")(x)
    x = layers.ELU(0.6, name="elu")(x)
    x = layers.AveragePooling2D((2, 3), strides=(1, 2), padding="same", name="pool")(x)
    x = layers.UpSampling2D((2, 1), interpolation="bilinear", name="smooth")(x)
    x = layers.UpSampling2D((1, 2), name="nearest")(x)
    x = layers.Cropping2D(((1, 0), (2, 3)), name="crop")(x)
    x = layers.Conv2DTranspose(3, 2, strides=2, name="wider")(x)
    x = layers.GroupNormalization(3, epsilon=0.004, name="groups")(x)
    x = layers.Activation("softmax", name="soft")(x)
    x = layers.Activation("hard_sigmoid", name="hard")(x)
    x = layers.Concatenate(axis=2, name="join")([x, x])
    x = layers.Permute((2, 1, 3), name="swap")(x)
    x = layers.Reshape((-1, 114), name="rows")(x)
    x = layers.GRU(5, go_backwards=True, reset_after=False, name="gru")(x)
    model = keras.Model(image, layers.Dense(3, use_bias=False, name="scores")(x))
    model.save(path)


def save_operators(path):
    """A SavedModel of single operators whose operands hold what ONNX has as attributes."""
    import tensorflow as tf

    def apply(x):
        a = tf.compat.v1.image.resize_bilinear(x, (12, 10), align_corners=True)
        b = tf.compat.v1.image.resize_nearest_neighbor(x, (12, 10), half_pixel_centers=True)
        c = tf.compat.v1.image.resize_bilinear(x, (12, 10))
        d = tf.concat([a, b, c], axis=2)
        d = tf.pad(d, [[0, 0], [1, 2], [3, 4], [0, 0]], constant_values=0.5)
        d = tf.nn.max_pool2d(d, (3, 2), (2, 1), [[0, 0], [1, 1], [0, 1], [0, 0]])
        d = tf.transpose(d, [0, 3, 1, 2])[:, 1:]
        e = tf.reduce_mean(d, axis=[2, 3], keepdims=True)
        f = tf.cumsum(tf.squeeze(e, [2, 3]), axis=1, reverse=True)
        f = tf.gather(f, [1, 0], axis=1)
        f = tf.matmul(f, tf.constant([[1.0, 2.0], [3.0, 4.0]]), transpose_b=True)
        f = tf.nn.leaky_relu(tf.clip_by_value(f, -0.5, 0.75), 0.3)
        values, places = tf.math.top_k(f, 2)
        return {"values": values, "places": tf.cast(places, tf.float32)}

    module = tf.Module()
    spec = tf.TensorSpec([None, 6, 5, 3], tf.float32, name="x")
    module.call = tf.function(apply, input_signature=[spec])
    tf.saved_model.save(module, path, signatures={"serving_default": module.call})
