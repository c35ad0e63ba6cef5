# TFP has no types. Declaring its modules as modules makes `tfd = tfp.distributions` an alias of one
# for mypy, so that `tfd.Distribution` can stand in an annotation (where it is Any).

from typing import Any

from tensorflow_probability import bijectors as bijectors
from tensorflow_probability import distributions as distributions

def __getattr__(name: str) -> Any: ...
