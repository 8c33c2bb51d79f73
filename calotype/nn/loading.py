"""Loading published weights into networks of the same architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from calotype.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)


def load(network: Network, weights: Mapping[str, Tensor], aside: tuple[str, ...]) -> Network:
    """Fill a network, and return it.

    Args:
        network: its state has the names of the weights.
        weights: by name.
        aside: beginnings of names that the network has no use for.

    Raises:
        ConfigError: with the first name that is missing, of another shape, or unknown.
    """
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, value in own.items():
        if name not in weights:
            raise ConfigError(f"the weights have no {name}: they are of another network than {type(network).__name__}")
        if weights[name].shape != value.shape:
            given, wanted = tuple(weights[name].shape), tuple(value.shape)
            raise ConfigError(f"{name} is {given} in the weights, but {type(network).__name__} has {wanted}")
    for name in weights:
        if name not in own and not name.endswith("num_batches_tracked") and not name.startswith(aside):
            raise ConfigError(f"the weights have {name}, which {type(network).__name__} has not: use its own file")
    network.load_state_dict({name: weights[name] for name in own}, strict=False)
    return network
