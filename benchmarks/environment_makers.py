"""Functions for environments whose constructors take what no key can hold, as EnvConfig(make=...) takes them."""

from typing import Any

import gymnasium as gym
import numpy as np


def trading(**arguments: Any) -> gym.Env[Any, Any]:
    """gym-trading-env on a random walk of 500 prices, with two features."""
    import gym_trading_env  # noqa: F401  it registers the environment
    import pandas as pd

    walk = 100.0 * np.exp(np.cumsum(np.random.default_rng(0).normal(0.0, 0.01, 501)))
    close = walk[1:]
    table = pd.DataFrame(
        {
            "open": walk[:-1],
            "close": close,
            "high": np.maximum(walk[:-1], close),
            "low": np.minimum(walk[:-1], close),
            "feature_change": close / walk[:-1] - 1.0,
            "feature_level": close / 100.0,
        },
        index=pd.date_range("2024-01-01", periods=500, freq="h"),
    )
    return gym.make("TradingEnv", df=table, verbose=0, **arguments)
