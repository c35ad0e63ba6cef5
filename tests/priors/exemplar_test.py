from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

import tfp_surgery as tfs
from tests.testing.encoder_priors import (
    EVENT_SHAPE,
    IdentityEncoder,
    binary_data,
    make_encoder,
    make_vae,
)
from tests.testing.prior_conformance import PriorConformance
from tfp_surgery.networks.likelihoods import GaussianLikelihood
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.exemplar import ExemplarPrior

X = binary_data()
STANDARD_ERRORS = 4.5
DATASET = tfs.datasets.Dataset("mine", "train", X, "none", 0)


class TestExemplarConformance(PriorConformance):
    def make(self, **kwargs: Any) -> Prior:
        policy = {"dtype": kwargs["dtype"]} if "dtype" in kwargs else {}
        # The model of the conformance test trains on arrays, which tell no indices.
        return ExemplarPrior(2, make_encoder(**policy), X, 6, leave_one_out=False, **kwargs)


def brute_force(prior: ExemplarPrior, z: np.ndarray, without: int | None = None) -> np.ndarray:
    """log p(z) of z `[S, 2]`, without the component of one observation."""
    keep = prior.indices.numpy() != without
    loc = prior.encoder(X[prior.indices.numpy()[keep]]).mean().numpy().astype(np.float64)
    scores = scipy.stats.norm(loc, float(prior.width)).logpdf(z[:, None]).sum(axis=-1)  # [S, M]
    density: np.ndarray = scipy.special.logsumexp(scores, axis=1) - np.log(keep.sum())
    return density


def test_the_density_is_the_mixture_at_the_exemplars() -> None:
    prior = ExemplarPrior(2, make_encoder(), X, 6)
    assert float(prior.width) == pytest.approx(1.0, abs=1e-6)
    prior.raw_width.assign(-0.5)
    z = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(
        prior().log_prob(z.astype(np.float32)), brute_force(prior, z), atol=1e-5
    )


def test_a_known_mixture_is_reached() -> None:
    """q(z) is four Gaussians of one width, at exemplars: the width is all there is to learn."""
    centres = np.array([[0.1, 0.2], [0.9, 0.3], [0.4, 0.8], [0.7, 0.7]], np.float32)
    encoder = IdentityEncoder(0.1)
    prior = ExemplarPrior(2, encoder, centres)
    q_z = tfs.AggregatePosterior.from_encoder(encoder, np.repeat(centres, 25, axis=0))
    fit = tfs.fit_prior(
        q_z,
        prior,
        initialize=False,
        num_steps=300,
        batch_size=200,
        learning_rate=0.03,
        num_samples=50,
        verbose=False,
    )
    after = fit.training.marginal_kl_after
    assert fit.training.marginal_kl_before.value > 1.0
    assert abs(after.value) + STANDARD_ERRORS * after.standard_error < 0.05


def test_the_subset_is_chosen_once_by_the_seed() -> None:
    encoder = make_encoder()
    for given in (X, DATASET, X.astype(bool)):
        prior = ExemplarPrior(2, encoder, given, 20, seed=1)
        indices = prior.indices.numpy()
        assert prior.num_components == 20
        assert np.all(np.diff(indices) > 0)
        assert indices.min() >= 0
        assert indices.max() < len(X)
        assert prior.exemplars.dtype == "uint8"
        np.testing.assert_array_equal(prior.exemplars, X[indices])
        np.testing.assert_array_equal(ExemplarPrior(2, encoder, X, 20, seed=1).indices, indices)
        assert np.any(ExemplarPrior(2, encoder, X, 20, seed=2).indices != indices)
    everything = ExemplarPrior(2, encoder, X / 2)
    assert everything.exemplars.dtype == "float32"
    np.testing.assert_array_equal(everything.exemplars, X / 2)
    np.testing.assert_array_equal(everything.indices, np.arange(len(X)))


def test_leaving_out_the_component_of_each_observation() -> None:
    prior = ExemplarPrior(2, make_encoder(), X, 20, seed=1)
    prior.raw_width.assign(-1.0)
    of_exemplars = prior.indices.numpy()
    others = np.setdiff1d(np.arange(len(X)), of_exemplars)
    index = np.array([of_exemplars[0], others[0], of_exemplars[-1], others[-1], -1, 10**6])
    left = prior.leave_one_out(index)
    assert left.batch_shape == [len(index)]
    z = np.random.default_rng(0).normal(size=(3, 2))
    log_prob = left.log_prob(np.tile(z[:, None].astype(np.float32), (1, len(index), 1))).numpy()
    for column, i in zip(log_prob.T, index, strict=True):
        np.testing.assert_allclose(column, brute_force(prior, z, without=i), atol=1e-5)
    assert np.all(log_prob[:, 0] != log_prob[:, 1])


def test_initialize_finds_the_width_of_codes() -> None:
    """With exemplars far apart EM is exact: the width is the root mean square distance."""
    x = np.random.default_rng(0).permutation(np.arange(400.0)).reshape(200, 2).astype(np.float32)
    prior = ExemplarPrior(2, IdentityEncoder(0.3), x * 10)
    codes = x * 10 + 0.5 * np.random.default_rng(1).normal(size=x.shape)
    prior.initialize(codes)
    np.testing.assert_allclose(prior.unit, codes.std(axis=0), rtol=1e-6)
    widths = prior().components_distribution.stddev().numpy()[0]
    # One width in standard deviations: those of the two dimensions differ by less than 2%.
    assert np.all(abs(widths - 0.5) < 0.01 + 4.5 * 0.5 / np.sqrt(2 * codes.size))
    prior.initialize(x * 10)  # codes without any spread
    assert 0 < float(prior.width) < 0.01


# -- training


class Recorder:
    """An objective that writes down the priors it is given."""

    def __init__(self) -> None:
        self.priors: list[Any] = []

    def __call__(self, x: Any, encoder: Any, decoder: Any, prior: Any, seed: Any) -> Any:
        self.priors.append(prior)
        return tfs.objectives.elbo()(x, encoder, decoder, prior, seed)


def recorded(leave_one_out: bool) -> tuple[tfs.VAE, list[Any]]:
    encoder, recorder = make_encoder(), Recorder()
    prior = ExemplarPrior(2, encoder, X, 20, leave_one_out=leave_one_out)
    vae = make_vae(encoder, prior, objective=recorder)
    vae.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    return vae, recorder.priors


def test_training_leaves_one_out_and_evaluation_does_not() -> None:
    vae, priors = recorded(leave_one_out=True)
    data = DATASET.batches(48, seed=0, indexed=True)
    orders = [batch["index"].numpy() for batch in DATASET.batches(48, seed=0, indexed=True)]
    vae.fit(data, verbose=0, validation_data=DATASET.batches(64))
    assert [p.name for p in priors] == ["LeaveOneOut", "LeaveOneOut", "AggregatePosterior"]
    chosen = vae.prior.indices.numpy()
    for prior, order in zip(priors[:2], orders, strict=True):
        expected = [list(chosen).index(i) if i in chosen else -1 for i in order]
        np.testing.assert_array_equal(prior.index, expected)
    vae.train_on_batch({"x": X, "index": np.arange(64)})
    vae.evaluate(DATASET.batches(64, indexed=True), verbose=0)
    vae.evaluate(X, verbose=0)
    assert [p.name for p in priors[3:]] == ["LeaveOneOut", *["AggregatePosterior"] * 3]


def test_training_without_leaving_out_needs_no_indices() -> None:
    vae, priors = recorded(leave_one_out=False)
    vae.fit(X, batch_size=64, verbose=0)
    vae.fit(DATASET.batches(64, indexed=True), verbose=0)
    assert {p.name for p in priors} == {"AggregatePosterior"}


def test_leaving_out_without_indices_is_an_error() -> None:
    vae, priors = recorded(leave_one_out=True)
    for x in (X, DATASET.batches(16)):
        with pytest.raises(ValueError, match=r"indexed=True\) gives them, or make the prior with"):
            vae.fit(x)
    with pytest.raises(ValueError, match="ExemplarPrior leaves the component of each"):
        vae.train_on_batch(X)
    assert priors == []


def shuffled(initial_epoch: int = 0) -> Any:
    return DATASET.batches(3, seed=2, initial_epoch=initial_epoch, indexed=True)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Under XLA and with 16 steps in one call, the last call being shorter."""

    def started() -> tfs.VAE:
        encoder = make_encoder()
        vae = make_vae(encoder, ExemplarPrior(2, encoder, X, 20))
        vae.compile(keras.optimizers.Adam(0.01))
        return vae

    whole, first = started(), started()
    whole.fit(shuffled(), epochs=3, verbose=0)
    assert whole.jit_compile
    path = tmp_path / "vae.keras"
    first.fit(shuffled(), epochs=1, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(path)])
    resumed = keras.saving.load_model(path)
    assert resumed.prior.encoder is resumed.encoder
    np.testing.assert_array_equal(resumed.prior.indices, whole.prior.indices)
    np.testing.assert_array_equal(resumed.prior.exemplars, whole.prior.exemplars)
    assert resumed.prior.leaves_one_out
    resumed.fit(shuffled(1), initial_epoch=1, epochs=3, verbose=0)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_configuration_has_no_data() -> None:
    encoder = make_encoder()
    small, large = (
        ExemplarPrior(2, encoder, x, name="p").get_config() for x in (X, np.tile(X / 3, (9, 1, 1)))
    )
    assert abs(len(json.dumps(small)) - len(json.dumps(large))) < 5
    again = ExemplarPrior.from_config(large)
    assert again.exemplars.shape == (9 * 64, *EVENT_SHAPE)
    assert again.get_config() == large
    assert again.exemplars.dtype == "float32"


def fitted_width_and_gap(leave_one_out: bool) -> tuple[float, float, float]:
    """The width after training, test less train marginal KL, and its standard error."""
    x_train, x_test = np.random.default_rng(0).normal(size=(2, 100, 2)).astype(np.float32)
    encoder = IdentityEncoder(0.02)
    prior = ExemplarPrior(2, encoder, x_train, leave_one_out=leave_one_out)
    decoder = tfs.networks.MLPDecoder((2,), (4,), likelihood=GaussianLikelihood())
    vae = tfs.VAE(encoder, decoder, prior)
    vae.compile(keras.optimizers.Adam(0.1), jit_compile=False)
    pipeline = tf.data.Dataset.from_tensor_slices({"x": x_train, "index": np.arange(100)})
    vae.fit(pipeline.batch(100).repeat(150), verbose=0)
    train, test = (
        tfs.elbo_surgery(x, encoder, decoder, prior(), num_samples=20).marginal_kl
        for x in (x_train, x_test)
    )
    error = np.hypot(train.standard_error, test.standard_error)
    return float(prior.width), test.value - train.value, error


def test_leaving_one_out_keeps_the_prior_from_memorising() -> None:
    """Codes of 100 training data, of scale 0.02, from a standard normal; and of 100 others."""
    memorised_width, memorised_gap, memorised_error = fitted_width_and_gap(leave_one_out=False)
    width, gap, error = fitted_width_and_gap(leave_one_out=True)
    # The best width of plain likelihood is that of the posteriors, whose own components it meets.
    assert memorised_width == pytest.approx(0.02, abs=0.01)
    assert width > 0.1
    assert memorised_gap > 4.5 * memorised_error
    assert memorised_gap - gap > 4.5 * np.hypot(memorised_error, error)
    assert abs(gap) < 0.1 * memorised_gap


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[:0]}, ValueError, "no observations"),
        ({"x": np.arange(5.0)}, ValueError, r"shape \[N, \*event_shape\], got \[5\]"),
        (
            {"x": tfs.datasets.Dataset("a", "train", X / 2, "stochastic", 0)},
            ValueError,
            "draw_seed",
        ),
        ({"num_components": 65}, ValueError, "at least 1 and at most 64, got 65"),
        ({"num_components": 1}, ValueError, "at least two components"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ExemplarPrior(**{"event_size": 2, "encoder": make_encoder(), "x": X, **arguments})
    with pytest.raises(ValueError, match="condition must be None"):
        ExemplarPrior(2, make_encoder(), X)(tf.zeros([2, 3]))
