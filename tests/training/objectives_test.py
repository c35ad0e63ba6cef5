from __future__ import annotations

import keras

import tfp_surgery
from tfp_surgery.training import elbo_objective, iwae_objective, objectives


def test_every_objective_is_in_the_namespace_and_survives_a_config() -> None:
    assert tfp_surgery.objectives is objectives
    assert objectives.elbo is elbo_objective.elbo
    assert objectives.iwae is iwae_objective.iwae
    assert all(hasattr(objectives, name) for name in objectives.__all__)
    for objective in (objectives.elbo(3), objectives.iwae(4, "sticking_the_landing")):
        config = keras.saving.serialize_keras_object(objective)
        again = keras.saving.deserialize_keras_object(config)
        assert type(again) is type(objective)
        assert again.get_config() == objective.get_config()
