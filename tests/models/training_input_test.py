from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.models.training_input import TrainingInput, reject_targets

X = np.linspace(0.0, 1.0, 24, dtype=np.float32).reshape(6, 2, 2)


def batches(x: Any = X) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(x).batch(4)


def test_arrays_and_datasets_have_an_event_shape() -> None:
    assert TrainingInput(X).event_shape == (2, 2)
    assert TrainingInput((X,)).event_shape == (2, 2)
    assert TrainingInput(tf.constant(X)).event_shape == (2, 2)
    assert TrainingInput(X.tolist()).event_shape == (2, 2)
    assert TrainingInput(batches()).event_shape == (2, 2)
    assert TrainingInput(batches((X,))).event_shape == (2, 2)
    assert TrainingInput(indexed(X)).event_shape == (2, 2)


def indexed(x: Any, dtype: Any = np.int32) -> tf.data.Dataset:
    return batches({"x": x, "index": np.arange(len(X), dtype=dtype)})


def test_indices_stay_with_their_observations() -> None:
    assert not TrainingInput(X).is_indexed
    assert not TrainingInput(batches()).is_indexed
    seen: list[np.ndarray] = []
    for dtype in (np.int32, np.int64):
        checked = TrainingInput(indexed(X, dtype))
        assert checked.is_indexed
        seen.clear()
        checked.check_values(lambda x, _: seen.append(x))
        assert checked.data.element_spec == indexed(X, dtype).element_spec
        read = list(checked.data.as_numpy_iterator())
        np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in read]), X)
        np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in read]), range(6))
        np.testing.assert_array_equal(seen, [X[:4]])
    late_nan = np.where(np.arange(6)[:, None, None] == 5, np.float32(np.nan), X)
    checked = TrainingInput(indexed(late_nan))
    checked.check_values(lambda x, _: seen.append(x))
    with pytest.raises(ValueError, match="later batch"), checked.failures_raised():
        list(checked.data)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X.astype(np.uint8), TypeError, "x must be floating.*uint8"),
        (batches(X.astype(np.uint8)), TypeError, "x must be floating.*uint8"),
        (X[:0], ValueError, "no observations"),
        (np.full_like(X, np.inf), ValueError, "finite"),
        (X[:, 0, 0], ValueError, r"shape \[N, \*event_shape\], got \[6\]"),
        (tf.data.Dataset.from_tensor_slices(X[:, 0, 0]), ValueError, "Has it been batched"),
        (batches((X, X)), ValueError, r"dataset.map\(lambda x, y: x\)"),
        (batches({"image": X}), ValueError, "observations alone"),
        (batches((X, np.arange(6))), ValueError, '{"x": x, "index": index}'),  # may be labels
        (batches({"x": X, "index": X[:, 0, 0]}), ValueError, "int32 or int64"),
        (batches({"x": X, "index": np.zeros([6, 1], int)}), ValueError, r"of shape \[B\]"),
        (
            (X, X),
            TypeError,
            r"its own target.* in the place of \(x, x\).*got a tuple .* 0: \(6, 2, 2\)",
        ),
        ({"x": X}, TypeError, "observations alone.*got a dict"),
        (iter([X]), TypeError, "tf.data.Dataset of batches, got list_iterator"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_cannot_be_trained_on(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainingInput(x)


def test_all_of_an_array_is_checked_at_once() -> None:
    seen: list[np.ndarray] = []
    TrainingInput(X).check_values(lambda x, _: seen.append(x))
    np.testing.assert_array_equal(np.concatenate(seen), X)


def test_the_first_batch_of_each_pass_is_checked_as_it_is_read() -> None:
    passes = 0

    def generate() -> Iterator[np.ndarray]:
        nonlocal passes
        passes += 1
        yield X[:4] * passes
        yield X[4:] * passes

    signature = tf.TensorSpec([None, 2, 2], tf.float32)
    seen: list[np.ndarray] = []
    checked = TrainingInput(tf.data.Dataset.from_generator(generate, output_signature=signature))
    checked.check_values(lambda x, _: seen.append(x))
    assert passes == 0  # nothing has been read ahead
    read = [np.concatenate(list(checked.data.as_numpy_iterator())) for _ in range(2)]
    assert passes == 2
    np.testing.assert_array_equal(read, [X, 2 * X])
    np.testing.assert_array_equal(seen, [X[:4], 2 * X[:4]])
    assert checked.data.element_spec == signature


def test_the_error_of_a_check_comes_through() -> None:
    def refuse(x: np.ndarray, _: Any) -> None:
        raise ValueError(f"the largest is {x.max()}")

    checked = TrainingInput(batches())
    checked.check_values(refuse)
    with pytest.raises(ValueError, match="the largest is"), checked.failures_raised():
        list(checked.data)
    not_finite = TrainingInput(batches(np.full_like(X, np.nan)))
    not_finite.check_values(lambda *_: None)
    with pytest.raises(ValueError, match="x must be finite"), not_finite.failures_raised():
        list(not_finite.data)


def test_other_errors_of_a_pipeline_stay_what_they_are() -> None:
    broken = batches().map(lambda x: tf.debugging.check_numerics(x / 0.0, "broken pipeline"))
    checked = TrainingInput(broken)
    checked.check_values(lambda *_: None)
    with (
        pytest.raises(tf.errors.InvalidArgumentError, match="broken pipeline"),
        checked.failures_raised(),
    ):
        list(checked.data)


def test_targets_are_refused_by_name() -> None:
    reject_targets(y=None, sample_weight=None)
    with pytest.raises(ValueError, match="takes no y, sample_weight"):
        reject_targets(y=X, sample_weight=X)


def test_later_batches_are_checked_for_nan() -> None:
    x = X.copy()
    x[5, 0, 0] = np.nan
    checked = TrainingInput(batches(x))
    checked.check_values(lambda *_: None)
    with (
        pytest.raises(ValueError, match="a later batch of the dataset holds NaN"),
        checked.failures_raised(),
    ):
        list(checked.data)
