"""Samplers of diffusion models and flows: plain functions of a denoiser and a schedule of sigmas.

A picture under noise is x = x₀ + σ·n. The denoiser is the best guess D(x, σ) of x₀, and the
probability-flow ODE is dx/dσ = (x - D) / σ (arXiv:2206.00364). DDPM's and rectified flow's own
coordinates are x times a factor that depends on σ alone, so their models are sampled here too. In
these coordinates a step of Euler is a step of DDIM with eta=0, and of Euler on a rectified flow: they
differ in the schedule only.

Every sampler takes x [batch, …] of the noise sigmas[0] and sigmas [steps + 1] that fall and end in 0,
and returns (x₀ [batch, …], what the denoiser said at the start of each step [steps, batch, …]).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# D(x [batch, …], σ scalar) → [batch, …]
Denoise = Callable[[jax.Array, jax.Array], jax.Array]

# Evaluations of the denoiser in a run of so many steps.
EVALUATIONS: dict[str, Callable[[int], int]] = {
    'euler': lambda steps: steps,
    'heun': lambda steps: 2 * steps - 1,
    'ddim': lambda steps: steps,
    'dpmpp_2m': lambda steps: steps,
}
SAMPLERS = tuple(EVALUATIONS)


def sample(
    name: str,
    denoise: Denoise,
    x: jax.Array,
    sigmas: jax.Array,
    *,
    key: jax.Array | None = None,
    eta: float | jax.Array = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Samples by the method called `name`; `key` and `eta` are for 'ddim' alone."""
    if name == 'ddim':
        return ddim(denoise, x, sigmas, key=key, eta=eta)
    return {'euler': euler, 'heun': heun, 'dpmpp_2m': dpmpp_2m}[name](denoise, x, sigmas)


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> jax.Array:
    """Falling sigmas [steps + 1], even in σ^(1/rho), and 0 at the end (arXiv:2206.00364, eq. 5)."""
    ramp = jnp.linspace(0, 1, steps) if steps > 1 else jnp.zeros(1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return jnp.append((high + ramp * (low - high)) ** rho, 0.0)


def straight(steps: int, sigma_max: float) -> jax.Array:
    """Falling sigmas [steps + 1], even in rectified flow's time t = σ / (1 + σ), and 0 at the end."""
    t = jnp.linspace(sigma_max / (1 + sigma_max), 0, steps + 1)
    return t / (1 - t)


def euler(denoise: Denoise, x: jax.Array, sigmas: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Euler's method: one evaluation a step."""

    def step(x, pair):
        sigma, following = pair
        d = denoise(x, sigma)
        return x + (following - sigma) * (x - d) / sigma, d

    return jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))


def heun(denoise: Denoise, x: jax.Array, sigmas: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Heun's method: two evaluations a step, one in the last, which leads to 0 and is Euler's."""

    def step(x, pair):
        sigma, following = pair
        d = denoise(x, sigma)
        slope = (x - d) / sigma
        ahead = x + (following - sigma) * slope
        other = (ahead - denoise(ahead, following)) / following
        return x + (following - sigma) * (slope + other) / 2, d

    x, seen = jax.lax.scan(step, x, (sigmas[:-2], sigmas[1:-1]))
    x, last = euler(denoise, x, sigmas[-2:])
    return x, jnp.concatenate([seen, last])


def ddim(
    denoise: Denoise,
    x: jax.Array,
    sigmas: jax.Array,
    *,
    key: jax.Array | None = None,
    eta: float | jax.Array = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """DDIM (arXiv:2010.02502): one evaluation a step; with eta=1 the noise of DDPM is drawn anew.

    `key` is needed where eta is not exactly 0.
    """
    drawn = key is not None
    keys = jax.random.split(key if drawn else jax.random.key(0), len(sigmas) - 1)

    def step(x, item):
        sigma, following, key = item
        d = denoise(x, sigma)
        # The formula of the paper divided by its α: the share of the new noise in `following`.
        up = jnp.minimum(
            eta * following / sigma * jnp.sqrt(jnp.maximum(sigma**2 - following**2, 0)), following
        )
        down = jnp.sqrt(following**2 - up**2)
        x = d + down * (x - d) / sigma
        return (x + up * jax.random.normal(key, x.shape) if drawn else x), d

    return jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:], keys))


def dpmpp_2m(denoise: Denoise, x: jax.Array, sigmas: jax.Array) -> tuple[jax.Array, jax.Array]:
    """DPM-Solver++ of order two, multistep (arXiv:2211.01095): one evaluation a step.

    The first step and the last are of order one.
    """

    def step(carry, item):
        x, before, log_step = carry  # log_step: ln σ of the step before minus that of this one
        sigma, following, first = item
        d = denoise(x, sigma)
        h = jnp.log(sigma) - jnp.log(jnp.maximum(following, 1e-30))
        ratio = log_step / h
        order_two = ~first & (following > 0)
        guess = jnp.where(order_two, d + (d - before) / (2 * jnp.maximum(ratio, 1e-6)), d)
        x = following / sigma * x + (1 - following / sigma) * guess
        return (x, d, h), d

    first = jnp.arange(len(sigmas) - 1) == 0
    start = (x, jnp.zeros_like(x), jnp.ones((), x.dtype))
    (x, _, _), seen = jax.lax.scan(step, start, (sigmas[:-1], sigmas[1:], first))
    return x, seen


# ---- what a denoiser is made into ----------------------------------------------------------------


def guided(conditional: Denoise, unconditional: Denoise, strength: float | jax.Array) -> Denoise:
    """Classifier-free guidance (arXiv:2207.12598): unconditional + strength · (conditional - it).

    1 is no guidance. Each evaluation calls both. The ODE of this denoiser does not lead to samples
    of the density p(x) · p(class | x)^strength, whatever the strength other than 0 and 1, because
    noise and tilting do not commute; it is a procedure of its own.
    """

    def denoise(x, sigma):
        free = unconditional(x, sigma)
        return free + strength * (conditional(x, sigma) - free)

    return denoise


def inpainted(denoise: Denoise, known: jax.Array, mask: jax.Array) -> Denoise:
    """`denoise`, told that x₀ is `known` where `mask` is False; both broadcast to [batch, …].

    Then the known part moves as under its own noise, and the model draws the rest to fit. It is a
    heuristic: the model never looks back from the finished part to what it could not fit.
    """
    return lambda x, sigma: jnp.where(mask, denoise(x, sigma), known)


# ---- likelihood ------------------------------------------------------------------------------------


def log_likelihood(
    denoise: Denoise, x: jax.Array, sigmas: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
    """log density [batch] in nats of x [batch, …] under the probability-flow ODE (arXiv:2011.13456).

    The density is that of the data with noise sigmas[-1] > 0, given sigmas that fall as in sampling
    and a prior N(0, sigmas[0]²). The ODE is integrated by Runge and Kutta's method of order four, in
    ln σ; each step calls the denoiser and its derivative four times. With `key` the divergence is
    estimated by one Rademacher probe (Hutchinson), else it is exact, at size-of-x times the cost.
    """
    flat = x.reshape(len(x), -1)
    size = flat.shape[1]

    def slope(x, log_sigma):
        """dx / d ln σ of a flat x [batch, size]."""
        sigma = jnp.exp(log_sigma)
        return x - denoise(x.reshape(-1, *shape), sigma).reshape(len(x), -1)

    shape = x.shape[1:]
    probes = None if key is None else jax.random.rademacher(key, flat.shape, flat.dtype)

    def both(x, log_sigma):
        """The slope and its divergence [batch]."""
        # Backward, because some operations define only that; the trace is the same either way.
        value, pull = jax.vjp(lambda x: slope(x, log_sigma), x)
        if probes is not None:
            return value, (pull(probes)[0] * probes).sum(1)

        def column(total, unit):
            return total + (pull(jnp.broadcast_to(unit, x.shape))[0] * unit).sum(1), None

        return value, jax.lax.scan(column, jnp.zeros(len(x)), jnp.eye(size))[0]

    def step(carry, pair):
        x, change = carry
        start, end = pair
        h = end - start
        k1, d1 = both(x, start)
        k2, d2 = both(x + h / 2 * k1, start + h / 2)
        k3, d3 = both(x + h / 2 * k2, start + h / 2)
        k4, d4 = both(x + h * k3, end)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (x, change + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    logs = jnp.log(sigmas[::-1])
    (end, change), _ = jax.lax.scan(step, (flat, jnp.zeros(len(x))), (logs[:-1], logs[1:]))
    prior = -0.5 * (
        jnp.square(end / sigmas[0]).sum(1) + size * jnp.log(2 * jnp.pi * sigmas[0] ** 2)
    )
    return prior + change
