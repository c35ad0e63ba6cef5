"""What counts as an array of numbers, at each door through which a caller's arrays come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tfp_surgery.checks.arrays import checked_numbers
from tfp_surgery.datasets import Dataset
from tfp_surgery.estimate import exact_strata_estimate, stratified_estimate

tfd = tfp.distributions

MASKED: Any = np.ma  # whose functions have no types

X = np.random.default_rng(0).uniform(size=(6, 2)).astype(np.float32)


class Frame:
    """Like a frame of pandas: `isna` tells what is missing, and the array does not always."""

    def __init__(self, values: Any, missing: Any):
        self.values = np.asarray(values)
        self.missing = np.asarray(missing)

    def isna(self) -> Any:
        return self.missing

    def to_numpy(self, dtype: str) -> Any:
        return self.values.astype(dtype)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        del dtype, copy
        array: np.ndarray = self.values
        return array


class Variable:
    """Like a variable of a netCDF file, whose array is masked."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        del dtype, copy
        array: np.ndarray = masked(X)
        return array


def masked(values: np.ndarray) -> Any:
    """The values with those of the fourth row masked, -999 under the mask."""
    mask = np.zeros(values.shape, bool)
    mask[3] = True
    return MASKED.MaskedArray(np.where(mask, -999, values).astype(values.dtype), mask)


def frame(values: np.ndarray) -> Any:
    """The same with a frame's missing values, which here have become 0."""
    mask = MASKED.getmaskarray(masked(values))
    return Frame(np.where(mask, 0, values).astype(values.dtype), mask)


class TooLateError(Exception):
    """Raised by whatever is called too late."""


def untouched(_: Any) -> Any:
    raise TooLateError("work began before the data were checked")


PRIOR = tfd.MultivariateNormalDiag(tf.zeros(2))
MODEL = (untouched, untouched, PRIOR)


class Posterior(keras.layers.Layer):
    """q(z|x) = N(x + shift, I), the shift learned."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = self.add_weight(shape=(2,), initializer="zeros")

    def call(self, x: tf.Tensor) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(x + self.shift, tf.ones_like(x))


def vae(encoder: Any = untouched, decoder: Any = untouched) -> tfs.VAE:
    model = tfs.VAE(encoder, decoder, PRIOR)
    model.compile("adam", jit_compile=False)
    return model


MODEL_DOORS: dict[str, Callable[[Any], Any]] = {
    "elbo_surgery": lambda x: tfs.elbo_surgery(x, *MODEL),
    "importance_weighted_elbo": lambda x: tfs.importance_weighted_elbo(
        x, *MODEL, num_importance_samples=2
    ),
    "importance sampling": lambda x: tfs.log_evidence_by_importance_sampling(x, *MODEL),
    "annealing": lambda x: tfs.log_evidence_by_annealed_importance_sampling(x, untouched, PRIOR),
    "refined_posteriors": lambda x: tfs.refined_posteriors(x, *MODEL),
    "inference_gaps": lambda x: tfs.inference_gaps(x, *MODEL, log_evidence=np.zeros(6)),
    "from_encoder": lambda x: tfs.AggregatePosterior.from_encoder(untouched, x),
    "empirical_entropy": tfs.empirical_entropy,
    "callback": tfs.ElboSurgeryCallback,
    "fit": lambda x: vae().fit(x),
    "validation": lambda x: vae(Posterior(), Posterior()).fit(X, validation_data=x),
    "evaluate": lambda x: vae().evaluate(x),
    "ExemplarPrior": lambda x: tfs.priors.ExemplarPrior(2, Posterior(), x),
    "VampPrior": lambda x: tfs.priors.VampPrior(
        2, Posterior(), (2,), num_components=6, pseudo_inputs=x
    ),
    "MixturePrior": lambda x: tfs.priors.MixturePrior(2, 2).initialize(x),
    "exemplar codes": lambda x: tfs.priors.ExemplarPrior(2, Posterior(), X).initialize(x),
    "flow codes": lambda x: tfs.priors.FlowPrior(2).initialize(x),
    "autoregressive codes": lambda x: tfs.priors.AutoregressivePrior(2).initialize(x),
}
DOORS: dict[str, Callable[[Any], Any]] = {
    **MODEL_DOORS,
    "Dataset": lambda x: Dataset("mine", "train", x, "none", 0),
    "stratified_estimate": lambda x: stratified_estimate(x, 2),
}
Q_Z = tfs.AggregatePosterior(tfd.MultivariateNormalDiag(X))
CODE_DOORS: dict[str, Callable[[Any], Any]] = {
    "index_log_probs": Q_Z.index_log_probs,
    "evaluate": Q_Z.evaluate,
    "minibatch_log_prob": lambda z: tfs.minibatch_log_prob(
        z, Q_Z.components_distribution, 60, method="mws"
    ),
    "elbo_readings": lambda z: tfs.elbo_readings(X, X, z, X, 6),
}
# Doors of vectors.
OTHER_DOORS: dict[str, Callable[[Any], Any]] = {
    "weights": lambda x: tfs.AggregatePosterior(tfd.MultivariateNormalDiag(X), weights=x),
    "log_evidence of the gaps": lambda x: tfs.inference_gaps(X, *MODEL, log_evidence=x),
    "log_evidence of a surgery": lambda x: tfs.elbo_surgery(
        X, *MODEL, detail="full", log_evidence=x
    ),
    "exact_strata_estimate": lambda x: exact_strata_estimate(x, 6),
    "rows of a Dataset": lambda x: Dataset("mine", "train", X, "none", 0)[x > 0.1],
}


@pytest.mark.parametrize("door", DOORS)
def test_masked_arrays_are_refused(door: str) -> None:
    with pytest.raises(ValueError, match=r"2 of 12 .* masked or missing, in 1 of 6 .* index 3"):
        DOORS[door](masked(X))


@pytest.mark.parametrize("door", CODE_DOORS)
def test_masked_codes_are_refused(door: str) -> None:
    CODE_DOORS[door](X)
    with pytest.raises(ValueError, match=r"2 of 12 .* masked or missing, in 1 of 6 .* index 3"):
        CODE_DOORS[door](masked(X))


@pytest.mark.parametrize("door", sorted(MODEL_DOORS))
def test_missing_values_of_frames_are_refused(door: str) -> None:
    with pytest.raises(ValueError, match=r"2 of 12 .* masked or missing, in 1 of 6 .* index 3"):
        MODEL_DOORS[door](frame(X))


@pytest.mark.parametrize("door", OTHER_DOORS)
def test_masked_vectors_are_refused(door: str) -> None:
    with pytest.raises(ValueError, match=r"1 of 6 .* masked or missing, in 1 of 6 rows"):
        OTHER_DOORS[door](masked(X[:, 0]))


@pytest.mark.parametrize("door", sorted(MODEL_DOORS))
@pytest.mark.parametrize(
    "make",
    [
        lambda: np.rec.array(list(map(tuple, X)), dtype=[("a", "f4"), ("b", "f4")]),
        lambda: np.array([[1.0, None]] * 6),
        lambda: X.astype(complex),
        lambda: X.astype(str),
        lambda: X.astype("timedelta64[s]"),
        lambda: X.astype("datetime64[s]"),
        lambda: [X, X],
    ],
    ids=["records", "objects", "complex", "text", "durations", "dates", "list of arrays"],
)
def test_what_is_no_array_of_numbers_is_refused(door: str, make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="must be an array of numbers"):
        MODEL_DOORS[door](make())


# Doors where a tuple of arrays is one structured observation.
STRUCTURED = {
    "elbo_surgery",
    "importance_weighted_elbo",
    "importance sampling",
    "annealing",
    "refined_posteriors",
    "inference_gaps",
    "from_encoder",
    "callback",
}


@pytest.mark.parametrize("door", sorted(STRUCTURED - {"annealing", "callback"}))
def test_data_with_labels_are_one_observation_that_an_encoder_of_images_does_not_take(
    door: str,
) -> None:
    for pair in ((X, X), (X, np.arange(6)), (tf.constant(X), X)):
        with pytest.raises(ValueError, match=r"encoder failed .* labels, hand in the first alone"):
            MODEL_DOORS[door](pair)


@pytest.mark.parametrize(
    "door", sorted(set(MODEL_DOORS) - {"fit", "evaluate", "validation"} - STRUCTURED)
)
def test_data_with_labels_are_refused_with_the_way_out(door: str) -> None:
    for pair in ((X, X), (X, np.arange(6)), (tf.constant(X), X)):
        with pytest.raises(TypeError, match=r"got a tuple.*alone \(\w+\[0\] of a pair\)"):
            MODEL_DOORS[door](pair)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (tf.data.Dataset.from_tensor_slices(X).batch(2), r"np.concatenate\(list\(x\.as_numpy_it"),
        (tf.data.Dataset.from_tensor_slices((X, X)), r"x\.map\(lambda x, y: x\)"),
        (scipy.sparse.csr_matrix(X), r"x\.toarray\(\)"),
        (scipy.sparse.coo_array(X), r"x\.toarray\(\)"),
        (tf.sparse.from_dense(X), r"tf\.sparse\.to_dense\(x\)"),
        (tf.ragged.constant([[1.0], [1.0, 2.0]]), "differ in length"),
        ({"image": X}, r"it has \['image'\]"),
        ([scipy.sparse.csr_matrix(X)] * 2, "arrays of its own"),
        ([[1.0, 2.0], X[0]], "arrays of its own"),
        (iter(X), r"got a .*iterator.*np\.stack\(list\(x\)\)"),
        (Frame(np.array([1.0, "a"], object), np.zeros(2, bool)), r"x\.to_numpy\('float32'\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_has_its_way_out(x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        checked_numbers("x", x)


def test_a_pipeline_can_be_collected_as_the_message_says() -> None:
    x = tf.data.Dataset.from_tensor_slices(X).batch(4)
    np.testing.assert_array_equal(np.concatenate(list(x.as_numpy_iterator())), X)


def test_a_mask_is_seen_through_what_hides_it() -> None:
    for value in (Variable(), [1.0, MASKED.masked], [[1.0], [MASKED.masked]], MASKED.masked):
        with pytest.raises(ValueError, match="masked or missing"):
            checked_numbers("x", value)


@pytest.mark.parametrize(
    "value",
    [
        MASKED.MaskedArray(X),  # nothing is masked
        MASKED.masked_greater(X, 2.0),
        Frame(X, np.zeros(X.shape, bool)),
        tf.constant(X),
        tf.Variable(X),
        keras.Variable(X),
        X.tolist(),
        tuple(map(tuple, X)),
        np.asmatrix(X),
        X.astype(">f4"),
        X.astype(np.float64),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_of_numbers_come_back_as_they_are(value: Any) -> None:
    array = checked_numbers("x", value)
    assert type(array) is np.ndarray
    np.testing.assert_array_equal(array, X)
    wide = getattr(value, "dtype", None) == np.float64
    assert array.dtype.newbyteorder("=") == (np.float64 if wide else np.float32)


def test_frames_of_pandas() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency")
    frame = pandas.DataFrame(X)
    np.testing.assert_array_equal(checked_numbers("x", frame), X)
    for missing in (
        pandas.DataFrame({"a": pandas.array([1, None], "Int64")}),
        pandas.Series(pandas.array([True, None], "boolean")),
        pandas.array([1.0, None], "Float64"),
        frame.mask(frame > 0.5),
    ):
        with pytest.raises(ValueError, match="masked or missing"):
            checked_numbers("x", missing)
