from __future__ import annotations

import keras
import numpy as np
import pytest

from tfp_surgery.datasets import load
from tfp_surgery.models.vae import VAE
from tfp_surgery.networks.decoders import MLPDecoder
from tfp_surgery.networks.encoders import MLPEncoder
from tfp_surgery.networks.priors import StandardNormalPrior
from tfp_surgery.surgery.decomposition import elbo_surgery
from tfp_surgery.training.callbacks import ElboSurgeryCallback


def _vae(event_shape: tuple[int, ...]) -> VAE:
    keras.utils.set_random_seed(0)
    vae = VAE(
        MLPEncoder(2, hidden_sizes=(16,)),
        MLPDecoder(event_shape, hidden_sizes=(16,)),
        StandardNormalPrior(2),
    )
    vae.compile(optimizer=keras.optimizers.Adam(1e-2))
    return vae


def test_reports_a_subset_while_training_and_everything_at_the_end() -> None:
    dataset = load("digits", binarization="fixed")
    vae = _vae(dataset.event_shape)
    callback = ElboSurgeryCallback(dataset, every=2, num_query=100, seed=5)
    history = vae.fit(
        dataset.batches(128, seed=0), epochs=4, verbose=0, callbacks=[callback]
    ).history
    assert [epoch for epoch, _ in callback.history] == [1, 3]
    assert all(surgery.num_query == 100 for _, surgery in callback.history)
    assert all(surgery.num_observations == 1500 for _, surgery in callback.history)
    assert history["surgery_elbo"] == [surgery.elbo.value for _, surgery in callback.history]
    result = callback.result
    assert result is not None
    assert result.num_query == 1500
    assert result == elbo_surgery(dataset, vae.encoder, vae.decoder, vae.prior, seed=5)
    subset = callback.history[-1][1]
    error = np.hypot(subset.elbo.standard_error, result.elbo.standard_error)
    assert abs(subset.elbo.value - result.elbo.value) < 4 * error


def test_the_average_of_the_weights_is_what_the_end_is_about() -> None:
    """With use_ema Keras overwrites the weights before on_train_end."""
    dataset = load("digits", binarization="fixed")
    vae = _vae(dataset.event_shape)
    vae.compile(optimizer=keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9))
    callback = ElboSurgeryCallback(dataset, every=9, num_query=10)
    vae.fit(dataset.batches(128, seed=0), epochs=1, verbose=0, callbacks=[callback])
    assert callback.result == elbo_surgery(dataset, vae.encoder, vae.decoder, vae.prior)


def test_what_cannot_be_carved_is_refused_before_training() -> None:
    with pytest.raises(TypeError, match="array of numbers"):
        ElboSurgeryCallback(load("digits", binarization="fixed").batches(10))
    with pytest.raises(ValueError, match="NaN"):
        ElboSurgeryCallback(np.full([3, 2], np.nan))
    callback = ElboSurgeryCallback(np.zeros([3, 2]))
    with pytest.raises(TypeError, match="no encoder and no decoder and no prior"):
        callback.set_model(keras.Sequential([keras.layers.Dense(1)]))


@pytest.mark.parametrize("name", ["every", "num_query", "num_samples", "batch_size"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ElboSurgeryCallback(np.zeros([3, 2]), **{name: 0})


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
