from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

import tfp_surgery as tfs
from tests.testing import oracles, small_aggregates
from tfp_surgery.training.prior_fit import PriorFit

tfb, tfd = tfp.bijectors, tfp.distributions

_ERRORS = 4.5  # standard errors


def _fit(*args: Any, **kwargs: Any) -> PriorFit:
    settings: dict[str, Any] = {
        "num_steps": 60,
        "batch_size": 64,
        "learning_rate": 0.03,
        "evaluate_every": 20,
        "verbose": False,
    }
    return tfs.fit_prior(*args, **{**settings, **kwargs})


def _gaussian_of_variables() -> tuple[Any, list[Any]]:
    prior = tfd.MultivariateNormalTriL(
        tf.Variable([0.0, 0.0]), tfp.util.TransformedVariable(tf.eye(2), tfb.FillScaleTriL())
    )
    return prior, []


def _gaussian_of_tfp() -> tuple[Any, list[Any]]:
    """A `DeferredModule`, which is no distribution and can be called."""
    prior = tfp.experimental.util.make_trainable(
        tfd.MultivariateNormalTriL, batch_and_event_shape=[2]
    )
    for variable in prior.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    return prior, []


def _gaussian_of_a_function() -> tuple[Any, list[Any]]:
    loc, raw = keras.Variable([0.0, 0.0]), tf.Variable([0.5, 0.0, 0.5])

    def prior() -> tfd.Distribution:
        return tfd.MultivariateNormalTriL(loc, tfb.FillScaleTriL()(raw))

    return prior, [loc, raw]


def _gaussian_of_a_module() -> tuple[Any, list[Any]]:
    class Gaussian(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.raw = tf.Variable([0.0, 0.0]), tf.Variable([0.5, 0.0, 0.5])

        def __call__(self) -> tfd.Distribution:
            return tfd.MultivariateNormalTriL(self.loc, tfb.FillScaleTriL()(self.raw))

    return Gaussian(), []


def _now(prior: Any) -> Any:
    return prior if hasattr(prior, "log_prob") else prior()


@pytest.mark.filterwarnings("ignore:no look at the fit")
@pytest.mark.parametrize(
    ("make", "case"),
    [
        *((_gaussian_of_variables, case) for case in oracles.CASES),
        (_gaussian_of_tfp, "overlapping"),
        (_gaussian_of_a_function, "separated"),
        (_gaussian_of_a_module, "separated"),
    ],
)
def test_reaches_the_best_gaussian(make: Callable[[], Any], case: str) -> None:
    """As a layer does; see `fit_prior_test`."""
    prior, variables = make()
    fit = _fit(
        small_aggregates.aggregate(case),
        prior,
        variables=variables or None,
        num_steps=1200,
        batch_size=500,
        evaluate_every=400,
        learning_rate=0.05,
        num_samples=500,
    )
    fitted = _now(prior)
    found = fitted.mean().numpy().astype(np.float64), fitted.covariance().numpy().astype(np.float64)
    moments = small_aggregates.moments(case)
    cross_entropy = small_aggregates.cross_entropy(moments, found)
    assert 0 <= cross_entropy - small_aggregates.cross_entropy(moments, moments) <= 5e-4
    error = fit.training.marginal_kl_after.standard_error
    marginal_kl = cross_entropy - small_aggregates.entropy(case)
    assert abs(fit.training.marginal_kl_after.value - marginal_kl) <= _ERRORS * error + 1e-5


def _mixture(num_components: int = 3, dtype: Any = tf.float32) -> Any:
    loc = np.random.default_rng(0).normal(size=[num_components, 2])
    return tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.Variable(tf.zeros(num_components, dtype), name="logits")),
        tfd.MultivariateNormalDiag(
            tf.Variable(loc, dtype=dtype, name="loc"),
            tfp.util.TransformedVariable(
                tf.ones([num_components, 2], dtype), tfb.Softplus(), name="scale"
            ),
        ),
    )


def _marginal_kl(case: str, logits: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> float:
    """KL(q(z) || p(z)) for a mixture of Gaussians p: -H[q] by quadrature, E_q by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = np.array([*itertools.product(nodes, nodes)])  # [M, 2]
    mass = np.outer(weights, weights).ravel() / (2 * math.pi)
    q_loc, q_scale = oracles.gaussian_case(case, 12, 2, 0)
    total = 0.0
    for mean, deviation in zip(q_loc, q_scale, strict=True):
        z = mean + deviation * grid
        parts = oracles.gaussian_log_densities(z, loc, scale) + special.log_softmax(logits)
        total += mass @ special.logsumexp(parts, axis=-1) / len(q_loc)
    return -small_aggregates.entropy(case) - total


@pytest.mark.slow
@pytest.mark.parametrize("case", oracles.CASES)
def test_a_mixture_of_variables_has_the_marginal_kl_of_its_result(case: str) -> None:
    prior = _mixture(dtype=tf.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # XLA compiles it, too
        fit = _fit(
            small_aggregates.aggregate(case, dtype=np.float64),
            prior,
            former_prior=prior,
            num_steps=200,
            batch_size=200,
            num_samples=200,
        )
    change = fit.training
    start, exacts = _mixture(dtype=tf.float64), []
    for measured, mixture in (
        (change.marginal_kl_before, start),  # the former prior is the prior before the fit
        (change.marginal_kl_after, prior),
    ):
        normal = mixture.components_distribution
        logits = mixture.mixture_distribution.logits.numpy()
        exacts.append(_marginal_kl(case, logits, normal.mean().numpy(), normal.stddev().numpy()))
        assert abs(measured.value - exacts[-1]) <= _ERRORS * measured.standard_error + 1e-6
    assert exacts[1] < exacts[0] - 0.01
    assert case == "collapsed" or fit.best_step == 200  # where noise decides


class Couple(tf.Module):
    """Shift and log scale of a coupling layer, linear in what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.fill([1, 2], 0.1), name="weight")
        self.bias = tf.Variable(tf.zeros(2), name="bias")

    def __call__(self, x: tf.Tensor, units: int, **kwargs: Any) -> list[tf.Tensor]:
        return tf.split(tf.tanh(x) @ self.weight + self.bias, 2, axis=-1)  # type: ignore[no-any-return]


def _flow(function: Any) -> Any:
    chain = [tfb.RealNVP(1, shift_and_log_scale_fn=function), tfb.Permute([1, 0])]
    scale = tfb.Scale(tfp.util.TransformedVariable([1.0, 1.0], tfb.Exp()))
    base = tfd.MultivariateNormalDiag(tf.zeros(2))
    return tfd.TransformedDistribution(base, tfb.Chain([scale, *chain]))


def _autoregressive() -> Any:
    network = tfb.AutoregressiveNetwork(params=2, hidden_units=[8], activation="tanh")
    flow = tfb.MaskedAutoregressiveFlow(network)
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 2), flow)


def _affine() -> Any:
    prior = tfp.experimental.vi.build_affine_surrogate_posterior([2], operators="tril")
    prior.trainable_variables[0].assign([1.0, 0.0, 1.0])  # its scales start at 0.01
    return prior


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "case"),
    [
        (lambda: _flow(Couple()), "overlapping"),
        (lambda: _flow(Couple()), "separated"),
        (_autoregressive, "separated"),
        (_affine, "overlapping"),
    ],
)
def test_a_flow_of_variables_beats_the_standard_normal(make: Any, case: str) -> None:
    """The layers of `AutoregressiveNetwork` have no weights before their first call."""
    keras.utils.set_random_seed(0)
    prior = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit = _fit(small_aggregates.aggregate(case), prior, num_steps=200, num_samples=50)
    change = fit.training.elbo_change
    assert change.value > max(0.01, _ERRORS * change.standard_error)
    assert fit.former_prior == "N(0, I)"
    codes = small_aggregates.aggregate(case).sample(4000, seed=[1, 2])
    gained = prior.log_prob(codes) - tfd.MultivariateNormalDiag(tf.zeros(2)).log_prob(codes)
    error = np.hypot(np.std(gained) / math.sqrt(4000), change.standard_error)
    assert abs(np.mean(gained) - change.value) <= _ERRORS * error


@pytest.mark.slow
def test_a_function_of_a_network_is_fitted_with_variables() -> None:
    network: Any = keras.layers.Dense(2)

    def couple(x: tf.Tensor, *_: Any, **__: Any) -> Any:
        return tf.split(network(x), 2, axis=-1)

    q_z = small_aggregates.aggregate("overlapping")
    network.build((None, 1))
    prior = _flow(couple)
    before = prior.trainable_variables[0].numpy()
    with pytest.raises(
        TypeError, match=r"dense\w*/bias \[2\].*variables= does not name.*Name what"
    ):
        _fit(q_z, prior)
    fit = _fit(q_z, prior, variables=network.trainable_variables, former_prior=prior)
    assert fit.training.elbo_change.value > 0.01
    np.testing.assert_array_equal(prior.trainable_variables[0], before)  # its own, not named


@pytest.mark.slow
def test_frozen_variables_stay_as_they_are() -> None:
    frozen = tf.Variable([1.0, 1.0], trainable=False)
    network = tfb.AutoregressiveNetwork(2, event_shape=[2], hidden_units=[4])
    network(tf.zeros([1, 2]))
    network.trainable = False  # of which the variables of tf_keras are not told
    kept: Any = keras.Variable([1.0, 1.0], trainable=False)
    loc = tf.Variable([0.0, 0.0])
    flow = tfb.MaskedAutoregressiveFlow(network)
    base = tfd.MultivariateNormalDiag(loc, frozen)
    before = [v.numpy() for v in network.variables]
    assert before
    q_z = small_aggregates.aggregate("separated")
    for prior, variables in (
        (tfd.TransformedDistribution(base, flow), None),
        (lambda: tfd.TransformedDistribution(base, tfb.Chain([flow, tfb.Shift(kept)])), [loc]),
    ):
        loc.assign([0.0, 0.0])
        _fit(q_z, prior, variables=variables)
        assert np.all(loc.numpy() != 0)
        for variable, value in zip(
            [frozen, kept, *network.variables], [[1, 1], [1, 1], *before], strict=True
        ):
            np.testing.assert_array_equal(variable.numpy(), value)


def test_the_best_look_is_restored_and_the_start_is_said() -> None:
    q_z = small_aggregates.aggregate("separated")
    mean, covariance = small_aggregates.moments("separated")
    loc = tf.Variable(mean, dtype=tf.float32)
    raw = tf.Variable(np.linalg.cholesky(covariance), dtype=tf.float32)
    prior = tfd.MultivariateNormalTriL(loc, raw)
    start = [loc.numpy(), raw.numpy()]
    with pytest.warns(UserWarning, match="no look at the fit of MultivariateNormalTriL was better"):
        fit = _fit(q_z, prior, former_prior=prior, learning_rate=1.0)
    assert fit.best_step == 0
    assert fit.training.elbo_change.value == 0.0
    for variable, value in zip([loc, raw], start, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_what_is_not_finite_stops_with_the_last_good_weights() -> None:
    loc = tf.Variable([0.0, 0.0])

    def prior() -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.where(loc > 0.5, math.nan, loc))

    codes = tfs.AggregatePosterior(tfd.MultivariateNormalDiag(tf.fill([4, 2], 3.0), [0.1, 0.1]))
    with pytest.raises(FloatingPointError, match=r"not finite.*The prior has the weights"):
        _fit(codes, prior, variables=[loc], num_steps=400)
    assert np.all(np.isfinite(loc))
    assert np.any(loc.numpy() > 0.5)


def test_sparse_gradients_are_taken() -> None:
    table = tf.Variable(tf.zeros([5, 2]), name="table")

    def prior() -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(tf.gather(table, [1, 1, 3])[0])

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _fit(small_aggregates.aggregate("separated"), prior, variables=[table])
    np.testing.assert_array_equal(np.any(table, axis=1), [False, True, False, False, False])


def test_one_variable_named_twice_is_one() -> None:
    q_z = small_aggregates.aggregate("separated")
    found = []
    for times in (1, 2):
        loc = tf.Variable([0.0, 0.0])
        _fit(q_z, lambda loc=loc: tfd.MultivariateNormalDiag(loc), variables=[loc] * times)
        found.append(loc.numpy())
    np.testing.assert_array_equal(*found)


_LOC, _KERAS = tf.Variable([0.0, 0.0], name="location"), keras.Variable([0.0, 0.0])
_OTHER = tf.Variable([1.0, 1.0], name="other")
_KEPT = tfd.MultivariateNormalDiag(_LOC + 0.0, _OTHER)


@pytest.mark.parametrize(
    ("prior", "variables", "error", "message"),
    [
        (tfd.MultivariateNormalDiag(tf.zeros(2)), None, ValueError, "has no trainable variables.*"),
        (tfd.MultivariateNormalDiag(_KERAS), None, ValueError, "has no trainable .*hand in a func"),
        (
            lambda: tfd.MultivariateNormalDiag(_LOC, _OTHER),
            None,
            TypeError,
            r"2 trainable variables \(location:0 \[2\], other:0 \[2\]\).*variables=\[",
        ),
        (
            lambda: tfd.MultivariateNormalDiag(_LOC, _OTHER),
            [_LOC],
            TypeError,
            r"1 trainable variables \(other:0 \[2\]\), which the gradient reaches but variables=",
        ),
        (lambda: _KEPT, [_LOC, _OTHER], ValueError, r"1 of the 2 variables.*\(location:0 \[2\]\)"),
        (
            tfd.MultivariateNormalDiag(_LOC),
            [_LOC, tf.Variable(1, name="count")],
            ValueError,
            r"count:0 \[\]\)",
        ),
        (tfd.MultivariateNormalDiag(_LOC), _LOC, TypeError, "variables must be a non-empty list"),
        (tfd.MultivariateNormalDiag(_LOC), [], TypeError, "variables must be a non-empty list"),
        (
            tfd.MultivariateNormalDiag(_LOC),
            [tfp.util.TransformedVariable(1.0, tfb.Exp())],
            TypeError,
            "holds a TransformedVariable.*name the trainable_variables",
        ),
        (
            tfd.MultivariateNormalDiag(_LOC),
            [tf.Variable(1.0, trainable=False, name="fixed")],
            ValueError,
            r"variables names fixed:0 \[\], which is frozen",
        ),
        (tfd.Normal(_LOC, 1.0), None, ValueError, r"has batch shape \[2\] and event shape \[\]"),
        (
            tfd.MultivariateNormalDiag(tf.Variable(tf.zeros([1, 3]))),
            None,
            ValueError,
            r"event shape \[3\]",
        ),
        (lambda: 3, [_LOC], TypeError, "did not give a distribution"),
        (
            lambda: tfd.MultivariateNormalDiag(tf.Variable([0.0, 0.0])),
            [_LOC],
            ValueError,
            "makes 1 variables anew",
        ),
    ],
)
def test_bad_priors_are_refused_before_work(
    prior: Any, variables: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _fit(small_aggregates.aggregate("overlapping"), prior, variables=variables)
    assert not np.any(_LOC)
    np.testing.assert_array_equal(_OTHER, [1.0, 1.0])
