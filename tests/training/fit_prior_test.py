from __future__ import annotations

import json
import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_surgery as tfs
from tests.testing import oracles, small_aggregates
from tests.testing.learned_priors import DiagonalMixturePrior, GaussianPrior
from tfp_surgery import seeds
from tfp_surgery.priors.base import Prior, StandardNormalPrior
from tfp_surgery.training.fit_prior import fit_prior
from tfp_surgery.training.prior_fit import PriorFit

tfd = tfp.distributions

_ERRORS = 4.5  # standard errors


def _quick(*args: Any, **kwargs: Any) -> PriorFit:
    settings: dict[str, Any] = {
        "num_steps": 60,
        "batch_size": 64,
        "learning_rate": 0.03,
        "evaluate_every": 20,
        "verbose": False,
    }
    return fit_prior(*args, **{**settings, **kwargs})


def _values(layer: keras.layers.Layer) -> list[np.ndarray]:
    return [variable.numpy().copy() for variable in layer.variables]


def _assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def _gaussians(loc: Any, scale: Any) -> tfs.AggregatePosterior:
    return tfs.AggregatePosterior(
        tfd.MultivariateNormalDiag(np.asarray(loc, np.float32), np.asarray(scale, np.float32))
    )


@pytest.mark.filterwarnings("ignore:no look at the fit")
@pytest.mark.parametrize("case", oracles.CASES)
def test_reaches_the_best_gaussian(case: str) -> None:
    """KL(q || p) exceeds its least by no more than the noise of the last steps leaves."""
    prior = GaussianPrior(2)
    fit = _quick(
        small_aggregates.aggregate(case),
        prior,
        num_steps=1200,
        batch_size=500,
        evaluate_every=400,
        learning_rate=0.05,
        num_samples=500,
    )
    moments = small_aggregates.moments(case)
    cross_entropy = small_aggregates.cross_entropy(moments, prior.moments())
    # Five parameters after some 10^5 codes; the noise costs half a nat over that a parameter.
    assert 0 <= cross_entropy - small_aggregates.cross_entropy(moments, moments) <= 5e-4
    marginal_kl = cross_entropy - small_aggregates.entropy(case)
    bound = _ERRORS * fit.training.marginal_kl_after.standard_error + 1e-5
    assert abs(fit.training.marginal_kl_after.value - marginal_kl) <= bound
    # What collapsed starts at the best there is: which look is better by chance, noise decides.
    assert case == "collapsed" or fit.best_step == 1200
    assert fit.num_steps == 1200
    assert not fit.stopped_early


def test_a_float64_prior_is_fitted_in_float64() -> None:
    prior = GaussianPrior(2, dtype="float64")
    q_z = small_aggregates.aggregate("overlapping", dtype=np.float64)
    fit = _quick(q_z, prior, validation=q_z, num_steps=400, batch_size=500, num_samples=1000)
    assert {variable.dtype for variable in prior.variables} == {"float64"}
    # Below the resolution of float32: log densities were kept in float64.
    change = fit.training
    difference = change.marginal_kl_before.value - change.marginal_kl_after.value
    np.testing.assert_allclose(change.elbo_change.value, difference, rtol=0, atol=1e-12)
    moments = small_aggregates.moments("overlapping")
    exact = small_aggregates.cross_entropy(moments, small_aggregates.STANDARD_NORMAL)
    exact -= small_aggregates.cross_entropy(moments, prior.moments())
    error = change.elbo_change.standard_error
    assert abs(change.elbo_change.value - exact) <= _ERRORS * error


@pytest.fixture(scope="module")
def fit_and_surgeries() -> tuple[Any, ...]:
    x = np.random.default_rng(0).integers(0, 2, (300, 3, 2)).astype(np.float32)
    keras.utils.set_random_seed(1)
    encoder = tfs.networks.MLPEncoder(2, (16,))
    decoder = tfs.networks.MLPDecoder((3, 2), (16,))
    encoder(x[:1])
    decoder(tf.zeros([1, 2]))
    former, prior = StandardNormalPrior(2), GaussianPrior(2)
    networks = _values(encoder) + _values(decoder)
    fit = _quick(
        tfs.AggregatePosterior.from_encoder(encoder, x),
        prior,
        former_prior=former,
        num_steps=300,
        seed=5,
    )
    _assert_same(networks, _values(encoder) + _values(decoder))
    surgeries = [
        [tfs.elbo_surgery(x, encoder, decoder, p, seed=seed) for p in (former, prior)]
        for seed in (5, 6)
    ]
    return fit, surgeries


class TestSurgeryBeforeAndAfter:
    """One VAE's encoder and decoder, carved up with the former and with the fitted prior."""

    def test_no_other_term_changes(self, fit_and_surgeries: tuple[Any, ...]) -> None:
        for before, after in fit_and_surgeries[1]:
            same, field = "index_code_mutual_information_sampled", "index_code_mutual_information"
            assert getattr(after, same) == getattr(before, same)
            # What is known of the priors, and so the control variates, differs.
            for name in ("average_reconstruction", field):
                old, new = getattr(before, name), getattr(after, name)
                error = np.hypot(old.standard_error, new.standard_error)
                assert abs(new.value - old.value) <= _ERRORS * error
            assert before.marginal_kl.value - after.marginal_kl.value > 0.1

    def test_the_elbo_rises_by_the_number_of_the_result(
        self, fit_and_surgeries: tuple[Any, ...]
    ) -> None:
        fit, (same_draws, other_draws) = fit_and_surgeries
        change = fit.training
        before, after = same_draws
        rise = after.elbo.value - before.elbo.value
        error = np.hypot(before.elbo.standard_error, after.elbo.standard_error)
        assert abs(change.elbo_change.value - rise) <= _ERRORS * error
        np.testing.assert_allclose(
            change.marginal_kl_before.value, before.marginal_kl.value, atol=1e-5
        )
        error = np.hypot(change.marginal_kl_after.standard_error, after.marginal_kl.standard_error)
        assert abs(change.marginal_kl_after.value - after.marginal_kl.value) <= _ERRORS * error
        before, after = other_draws
        rise = after.elbo.value - before.elbo.value
        error = np.hypot(before.elbo.standard_error, after.elbo.standard_error)
        error = np.hypot(error, change.elbo_change.standard_error)
        assert 0 < abs(change.elbo_change.value - rise) <= _ERRORS * error
        assert fit.former_prior == "MultivariateNormalDiag"


@pytest.mark.slow
def test_one_seed_gives_one_fit() -> None:
    """It is an int or a pair of int32."""
    q_z = small_aggregates.aggregate("overlapping")
    weights, fits = [], []
    for seed in ((1, 2), [1, 2], 1):
        prior = GaussianPrior(2)
        fits.append(_quick(q_z, prior, seed=seed))
        weights.append(_values(prior))
    _assert_same(weights[0], weights[1])
    assert fits[0].training == fits[1].training
    assert all(np.any(a != b) for a, b in zip(weights[0], weights[2], strict=True))
    assert fits[1].seed == (1, 2)
    assert json.loads(json.dumps(fits[1].to_dict()))["seed"] == [1, 2]


@pytest.fixture(scope="module")
def q_z() -> tfs.AggregatePosterior:
    rng = np.random.default_rng(0)
    return _gaussians(rng.normal(size=(12, 2)), np.full((12, 2), 0.05))


@pytest.fixture(scope="module")
def validation() -> tfs.AggregatePosterior:
    rng = np.random.default_rng(1)
    return _gaussians(rng.normal(size=(300, 2)), np.full((300, 2), 0.05))


@pytest.fixture(scope="module")
def stopped(q_z: Any, validation: Any) -> tuple[DiagonalMixturePrior, PriorFit]:
    prior = DiagonalMixturePrior(2, 12)
    return prior, _quick(
        q_z, prior, validation=validation, num_steps=2000, patience=3, seed=2, num_samples=100
    )


class TestValidation:
    """Twelve components learn twelve narrow posteriors by heart."""

    def test_stops_and_restores_the_best_weights(
        self, validation: Any, stopped: tuple[DiagonalMixturePrior, PriorFit]
    ) -> None:
        prior, fit = stopped
        values = np.array([look.validation_log_prob for look in fit.history], np.float64)
        assert [look.step for look in fit.history] == list(range(0, fit.num_steps + 1, 20))
        assert fit.stopped_early
        assert fit.num_steps < 2000
        assert 0 < fit.best_step == 20 * np.argmax(values) == fit.num_steps - 60
        # The fixed draw again: the weights are those of the best look.
        codes = validation.components_distribution.sample(
            seed=seeds.key(2, "fit_prior/validation_codes")
        )
        restored = np.mean(prior().log_prob(codes), dtype=np.float64)
        np.testing.assert_allclose(restored, values.max(), rtol=1e-6)
        assert values[-1] < values.max() - 0.01

    @pytest.mark.slow
    def test_stopping_matters(
        self, q_z: Any, validation: Any, stopped: tuple[Any, PriorFit]
    ) -> None:
        """All steps without a validation set: better on training data, worse on others."""
        prior = DiagonalMixturePrior(2, 12)
        fit = _quick(q_z, prior, num_steps=600, seed=2, num_samples=100)
        assert fit.best_step == 600
        early = stopped[1]
        gained = fit.training.elbo_change.value - early.training.elbo_change.value
        assert gained > 0.1
        assert early.validation is not None
        held_out = _quick(validation, prior, num_steps=0, initialize=False, num_samples=100, seed=2)
        lost = early.validation.elbo_change.value - held_out.training.elbo_change.value
        assert lost > 0.1
        # The former prior and the draws are the same.
        assert held_out.training.marginal_kl_before == early.validation.marginal_kl_before

    def test_the_weights_at_the_start_may_be_the_best(self, q_z: Any, validation: Any) -> None:
        prior = GaussianPrior(2)  # starts at N(0, I), which the held-out codes follow
        start = _values(prior)
        fit = _quick(q_z, prior, validation=validation, learning_rate=0.5, patience=2)
        assert fit.best_step == 0
        assert fit.num_steps == 40
        _assert_same(_values(prior), start)
        assert fit.validation is not None
        assert fit.validation.elbo_change.value == 0

    @pytest.mark.slow
    def test_without_patience_all_steps_are_taken(self, q_z: Any, validation: Any) -> None:
        prior = GaussianPrior(2)
        fit = _quick(q_z, prior, validation=validation, learning_rate=0.5, patience=None)
        assert (fit.num_steps, fit.best_step, fit.stopped_early) == (60, 0, False)


def test_initialization_can_be_left_out() -> None:
    q_z = small_aggregates.aggregate("overlapping")
    prior = DiagonalMixturePrior(2, 12)
    start = _values(prior)
    fit = _quick(q_z, prior, num_steps=0, initialize=False)
    _assert_same(_values(prior), start)
    assert (fit.num_steps, fit.best_step, len(fit.history)) == (0, 0, 1)
    _quick(q_z, prior, num_steps=0)
    codes = q_z.components_distribution
    # One draw of each posterior, in order.
    assert np.all(abs(prior.loc.numpy() - codes.mean()) < 6 * codes.stddev())


@pytest.mark.slow
def test_a_fit_that_goes_on_is_measured_against_the_weights_it_started_with() -> None:
    q_z = small_aggregates.aggregate("separated")
    prior = GaussianPrior(2)
    _quick(q_z, prior)
    middle = prior.moments()
    fit = _quick(q_z, prior, former_prior=prior, num_samples=200)
    moments = small_aggregates.moments("separated")
    expected = small_aggregates.cross_entropy(moments, middle)
    expected -= small_aggregates.cross_entropy(moments, prior.moments())
    change = fit.training.elbo_change
    assert abs(change.value - expected) <= _ERRORS * change.standard_error + 1e-5
    assert expected > 0.01


class EncodedPrior(Prior):
    """N(encoder(u), exp(2 s) I) with an encoder that is not the prior's to train."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)
        self.encoder = tfs.networks.MLPEncoder(2, (4,))
        self.pseudo_input = self.add_weight(shape=[1, 3], initializer="ones")
        self.log_scale = self.add_weight(shape=[2], initializer="zeros")

    @property
    def fitted_variables(self) -> list[keras.Variable]:
        return [self.pseudo_input, self.log_scale]

    def call(self, condition: Any = None) -> tfd.Distribution:
        loc = self.encoder(tf.convert_to_tensor(self.pseudo_input)).mean()[0]
        return tfd.MultivariateNormalDiag(loc, tf.exp(tf.convert_to_tensor(self.log_scale)))


def test_the_encoder_of_a_prior_stays_as_it_is() -> None:
    keras.utils.set_random_seed(1)
    prior = EncodedPrior()
    prior()
    encoder, own = _values(prior.encoder), [v.numpy().copy() for v in prior.fitted_variables]
    fit = _quick(small_aggregates.aggregate("separated"), prior, former_prior=prior)
    assert fit.training.elbo_change.value > 0.1
    assert len(encoder) > 0
    _assert_same(_values(prior.encoder), encoder)
    for variable, old in zip(prior.fitted_variables, own, strict=True):
        assert np.all(variable.numpy() != old)


class PlainLayer(keras.layers.Layer):
    """A layer of someone else: no Prior, and its weights are made in `build`."""

    def build(self, input_shape: Any = None) -> None:
        self.loc = self.add_weight(shape=[2], initializer="ones", name="loc")
        self.built = True

    def call(self, condition: Any = None) -> tfd.Distribution:
        if not self.built:
            self.build()
        return tfd.MultivariateNormalDiag(tf.convert_to_tensor(self.loc), [1.0, 1.0])


def test_a_layer_of_someone_else_is_fitted() -> None:
    layer = PlainLayer()
    fit = _quick(small_aggregates.aggregate("overlapping"), layer, former_prior=layer)
    assert fit.training.elbo_change.value > 0.1
    assert np.all(layer.loc.numpy() != 1)


def test_a_prior_without_variables_is_measured() -> None:
    with pytest.warns(UserWarning, match="has no variables to fit"):
        fit = _quick(small_aggregates.aggregate("overlapping"), StandardNormalPrior(2))
    assert fit.num_steps == 0
    assert not fit.stopped_early
    assert fit.training.elbo_change.value == 0


class SnapshotPrior(GaussianPrior):
    """Keeps a distribution, and with it the values that its weights had."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)
        self.kept = tfd.MultivariateNormalDiag(tf.convert_to_tensor(self.loc), [1.0, 1.0])

    def call(self, condition: Any = None) -> tfd.Distribution:
        return self.kept


def test_a_distribution_that_forgets_its_weights_is_refused() -> None:
    prior = SnapshotPrior()
    with pytest.raises(ValueError, match="No gradients"):
        _quick(small_aggregates.aggregate("overlapping"), prior)


class Uncompilable(GaussianPrior):
    def call(self, condition: Any = None) -> tfd.Distribution:
        shift = tf.numpy_function(lambda: np.zeros(2, np.float32), [], tf.float32)
        shift.set_shape([2])
        return tfd.MultivariateNormalDiag(tf.convert_to_tensor(self.loc) + shift, [1.0, 1.0])


def test_a_prior_that_xla_cannot_compile_is_fitted_without_it() -> None:
    prior = Uncompilable(2)
    q_z = small_aggregates.aggregate("separated")
    with pytest.warns(UserWarning, match="XLA cannot compile this prior"):
        fit = _quick(q_z, prior, validation=q_z)
    assert fit.training.elbo_change.value > 0.1


@pytest.fixture(scope="module")
def fit() -> PriorFit:
    q_z, held_out = (small_aggregates.aggregate("overlapping", seed) for seed in (0, 1))
    return _quick(q_z, GaussianPrior(2), validation=held_out, patience=None)


class TestResult:
    def test_to_dict_is_strict_json(self, fit: PriorFit) -> None:
        record = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
        assert record["training"]["elbo_change"] == fit.training.elbo_change.to_dict()
        assert record["validation"]["evaluation"] == "exact"
        assert record["former_prior"] == "N(0, I)"
        assert record["history"][0]["training_log_prob"] is None
        assert [look["step"] for look in record["history"]] == [0, 20, 40, 60]

    def test_prints_both_changes(self, fit: PriorFit) -> None:
        text = str(fit)
        assert text.count("change in ELBO") == 2
        assert str(fit.training.marginal_kl_before) in text
        assert f"weights of step {fit.best_step}" in text
        assert "in place of N(0, I)" in text
        assert "trained: " in text
        assert len(text.splitlines()) == 11

    def test_training_values_are_means_over_the_steps(self, fit: PriorFit) -> None:
        """They rise, and end near what the fitted prior has on the draws of the result."""
        values = np.array([look.training_log_prob for look in fit.history[1:]], np.float64)
        assert values[0] < values[-1]

    def test_progress_is_printed_in_plain_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        q_z = small_aggregates.aggregate("overlapping")
        fit = _quick(q_z, GaussianPrior(2), validation=q_z, verbose=True, patience=None)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(fit.history)
        assert all("nats" in line and line.startswith("fit_prior: step ") for line in lines)
        assert re.search(r"step 60 of 60, .* in training, .* held out \(best", lines[-1])


def test_one_draw_has_no_standard_error() -> None:
    with pytest.warns(UserWarning, match="num_samples=1"):
        fit = _quick(small_aggregates.aggregate("overlapping"), GaussianPrior(2), num_samples=1)
    assert np.isnan(fit.training.elbo_change.standard_error)


_Q = small_aggregates.aggregate("overlapping")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prior": 3}, TypeError, "Distribution or a callable that returns one, got int"),
        ({"prior": GaussianPrior(3)}, ValueError, r"codes of shape \[2\].*event shape \[3\]"),
        ({"prior": GaussianPrior(2, dtype="float64")}, ValueError, "one dtype"),
        ({"former_prior": GaussianPrior(3)}, ValueError, r"event shape \[3\]"),
        ({"former_prior": 3}, TypeError, "prior must be"),
        ({"aggregate_posterior": tfd.Normal(0.0, 1.0)}, TypeError, "aggregate_posterior must be"),
        (
            {
                "aggregate_posterior": tfs.AggregatePosterior(
                    tfd.MultivariateNormalDiag(tf.zeros([3, 4, 2]))
                )
            },
            ValueError,
            r"batch shape \(3,\)",
        ),
        (
            {
                "aggregate_posterior": tfs.AggregatePosterior(
                    tfd.MultivariateNormalDiag(tf.zeros([2, 2])), weights=[0.2, 0.8]
                )
            },
            ValueError,
            "aggregate_posterior must weight its components equally",
        ),
        (
            {"aggregate_posterior": _gaussians([[0.0, np.nan]], [[1.0, 1.0]])},
            ValueError,
            "NaN parameters for 1 of 1",
        ),
        ({"validation": GaussianPrior(2)}, TypeError, "validation must be"),
        ({"validation": _gaussians([[0.0]], [[1.0]])}, ValueError, "validation must be over codes"),
        (
            {"validation": small_aggregates.aggregate("overlapping", dtype=np.float64)},
            ValueError,
            "float64",
        ),
        ({"validation": _gaussians([[0.0, np.nan]], [[1, 1]])}, ValueError, "NaN parameters"),
        ({"num_steps": -1}, ValueError, "num_steps must be at least 0"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every"),
        ({"patience": 0}, ValueError, "patience"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_input_is_refused_before_work(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    prior = GaussianPrior(2)
    given = {"aggregate_posterior": _Q, "prior": prior, **arguments}
    with pytest.raises(error, match=message):
        fit_prior(given.pop("aggregate_posterior"), given.pop("prior"), **given)
    assert not np.any(prior.loc)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_prior_is_built_no_more_often_than_its_weights_change(held_out: bool) -> None:
    """For the check, as the former prior, after `initialize` and at the end; q(z) share each."""

    class Counted(GaussianPrior):
        num_built = 0

        def call(self, condition: Any = None) -> tfd.Distribution:
            self.num_built += tf.executing_eagerly()
            return super().call(condition)

    prior = Counted(2)
    q_z = small_aggregates.aggregate("overlapping")
    _quick(q_z, prior, former_prior=prior, validation=q_z if held_out else None)
    assert prior.num_built == 4
