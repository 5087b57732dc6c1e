"""`numpyro.infer.SVI` that learns, step by step, how much of which gradient estimator to take."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from numpyro import infer
from numpyro.infer.svi import SVIState, _make_loss_fn

from gdregs.auto import Auto, AutoState
from gdregs.numpyro.bound import Bound
from gdregs.numpyro.live import TooCostlyError
from gdregs.reexpression.paths import with_path

STATE = "gdregs.auto"
"""Under this name the learned strengths lie in the mutable state of an `SVIState`."""


class SVI(infer.SVI):
    r"""numpyro's SVI, with a loss whose `auto` estimators are learned: `gdregs.Auto`.

    It takes the place of `numpyro.infer.SVI` in one line, and begins as what was there: at the
    first step the gradient is the naive one. From then on each parameter has the mix of naive and
    doubly reparameterized gradients that had the least variance in earlier steps. Every step is
    unbiased. What is known of the variances is carried in `SVIState.mutable_state`, so that `init`,
    `update`, `stable_update`, `run`, `evaluate`, `jax.lax.scan` and checkpoints work as they do in
    numpyro.

    Args:
        model: As in numpyro.
        guide: As in numpyro.
        optim: As in numpyro.
        loss: A `gdregs.numpyro.Bound`; any other loss is left alone, and so is a bound whose
            estimators are named.
        auto: How the mix is learned.
        static_kwargs: As in numpyro.

    Example:
        >>> import gdregs.numpyro, jax, numpyro, numpyro.distributions as dist, optax
        >>> def model(data):
        ...     centre = numpyro.param("centre", 0.0)
        ...     with numpyro.plate("data", len(data)):
        ...         z = numpyro.sample("z", dist.Normal(centre, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=data)
        >>> guide = numpyro.infer.autoguide.AutoNormal(model)
        >>> loss = gdregs.numpyro.Bound(num_particles=16)
        >>> svi = gdregs.numpyro.SVI(model, guide, optax.adam(0.05), loss)
        >>> data = jax.numpy.array([1.0, 2.0, 3.0])
        >>> result = svi.run(jax.random.key(0), 300, data, progress_bar=False)
        >>> bool(abs(result.params["centre"] - 2.0) < 0.3)  # the mean of the data
        True
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        optim: Any,
        loss: Any = None,
        *,
        auto: Auto = Auto(),
        **static_kwargs: Any,
    ):
        super().__init__(model, guide, optim, Bound() if loss is None else loss, **static_kwargs)
        self.auto = auto

    def init(self, rng_key: PRNGKeyArray, *args: Any, **kwargs: Any) -> SVIState:
        """Numpyro's initial state, with nothing learned yet."""
        state = super().init(rng_key, *args, **kwargs)
        if not isinstance(self.loss, Bound) or not self.loss.is_auto:
            return state
        kwargs.pop("init_params", None)
        learning = self._what_can_be_mixed(state, args, kwargs)
        if learning is None:
            return state
        self.auto = learning
        learned = self.auto.init(self.optim.get_params(state.optim_state))
        return state._replace(mutable_state={**(state.mutable_state or {}), STATE: learned})

    def update(
        self,
        svi_state: SVIState,
        *args: Any,
        forward_mode_differentiation: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One step, as in numpyro."""
        return self._step("eval_and_update", svi_state, args, kwargs, forward_mode_differentiation)

    def stable_update(
        self,
        svi_state: SVIState,
        *args: Any,
        forward_mode_differentiation: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One step, which leaves parameters as they are where it has no finite gradient."""
        return self._step(
            "eval_and_stable_update", svi_state, args, kwargs, forward_mode_differentiation
        )

    def _step(self, method, svi_state, args, kwargs, forward_mode):
        mutable = dict(svi_state.mutable_state or {})
        learned = mutable.pop(STATE, None)
        if learned is None:
            step = {
                "eval_and_update": super().update,
                "eval_and_stable_update": super().stable_update,
            }[method]
            return step(svi_state, *args, forward_mode_differentiation=forward_mode, **kwargs)
        key, key_of_step = jax.random.split(svi_state.rng_key)
        function = self._mixed_loss(key_of_step, mutable or None, learned, args, kwargs)
        (loss, mutable), optim_state = getattr(self.optim, method)(
            function, svi_state.optim_state, forward_mode_differentiation=forward_mode
        )
        return SVIState(optim_state, mutable, key), loss

    def _mixed_loss(self, key, mutable, learned: AutoState, args, kwargs):
        """The loss as a function of the parameters, whose derivative is the learned mix."""

        def value_and_grad(params, posterior_estimator, prior_estimator):
            loss = self.loss.with_estimators(posterior_estimator, prior_estimator)
            function = _make_loss_fn(
                loss, key, self.constrain_fn, self.model, self.guide, args, kwargs,
                self.static_kwargs, mutable_state=mutable,
            )  # fmt: skip
            return jax.value_and_grad(function, has_aux=True)(params)

        def function(params):
            fixed = jax.lax.stop_gradient(params)
            ((value, new_mutable), gradient), new_learned = self.auto.value_and_grad(
                lambda *pair: value_and_grad(fixed, *pair), learned
            )
            terms = jax.tree.map(lambda p, g: jnp.sum(p * g), params, gradient)
            value = with_path(value, sum(jax.tree.leaves(terms), jnp.zeros_like(value)))
            return value, {**(new_mutable or {}), STATE: new_learned}

        return function

    def _what_can_be_mixed(self, state, args, kwargs) -> Auto | None:
        """The mix of both estimators, or of the posterior's alone, or none; says why, once.

        Where it would make a step far longer there is none, and nothing to say.
        """
        params = self.optim.get_params(state.optim_state)
        only_posterior = dataclasses.replace(self.auto, prior=False)
        choices = (self.auto, only_posterior) if self.auto.prior else (self.auto,)
        reasons = []
        for auto in choices:
            learned = auto.init(params)
            trial = SVI.__new__(SVI)
            trial.__dict__ = {**self.__dict__, "auto": auto}
            function = trial._mixed_loss(state.rng_key, state.mutable_state, learned, args, kwargs)
            try:
                jax.eval_shape(function, params)
            except TooCostlyError:
                return None
            except (TypeError, ValueError, NotImplementedError) as error:
                reasons.append(str(error).splitlines()[0])
            else:
                break
        else:
            auto = None
        if reasons:
            left = "The prior's estimator stays" if auto else "Both estimators stay"
            warnings.warn(f"{left} naive: {reasons[0]}", stacklevel=3)
        return auto
