"""Programs that no one here wrote: other people's libraries under our transformations.

The packages are the optional extra ``ecosystem``. A test is skipped where its package
is absent; CI has them all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from tests.reference import (
    assert_agrees_with_nested_jvp,
    assert_close,
    normal,
    random_directions,
)


def as_double(tree):
    """Floating-point leaves in float64."""
    wide = lambda x: (
        x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
    )
    return jax.tree.map(wide, tree)


@pytest.mark.slow
def test_flax_nnx_transformer_block_with_dropout_and_layer_norm():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm1 = nnx.LayerNorm(8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=2,
                in_features=8,
                dropout_rate=0.1,
                deterministic=False,
                decode=False,
                rngs=rngs,
            )
            self.norm2 = nnx.LayerNorm(8, rngs=rngs)
            self.wide = nnx.Linear(8, 16, rngs=rngs)
            self.narrow = nnx.Linear(16, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            x = x + self.dropout(self.attention(self.norm1(x)))
            return x + self.dropout(self.narrow(nnx.gelu(self.wide(self.norm2(x)))))

    block = Block(nnx.Rngs(params=0, dropout=1))
    graph, params, rest = nnx.split(block, nnx.Param, ...)
    x = normal(2, 3, 8)

    def loss(params):
        return jnp.mean(nnx.merge(graph, params, rest, copy=True)(x) ** 2)

    assert_agrees_with_nested_jvp(loss, as_double(params), k=2)


def test_flax_linen_residual_block_with_batch_norm_in_evaluation_mode():
    nn = pytest.importorskip("flax.linen", reason="flax is not installed")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Conv(4, (3, 3), strides=(2, 2), use_bias=False)(x)
            y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
            y = nn.Conv(4, (3, 3), use_bias=False)(y)
            y = nn.BatchNorm(use_running_average=True)(y)
            shortcut = nn.Conv(4, (1, 1), strides=(2, 2), use_bias=False)(x)
            return nn.relu(y + nn.BatchNorm(use_running_average=True)(shortcut))

    model, x = Block(), normal(2, 6, 6, 3)
    variables = as_double(model.init(jax.random.key(0), x))

    def loss(params):
        out = model.apply({**variables, "params": params}, x)
        return jnp.mean(out**2) + jnp.sum(nn.avg_pool(out, (2, 2)))

    assert_agrees_with_nested_jvp(loss, variables["params"], k=2)


@pytest.mark.slow
def test_equinox_mlp():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    mlp = eqx.nn.MLP(3, 2, 5, 2, activation=jax.nn.softplus, key=jax.random.key(0))
    params, static = eqx.partition(mlp, eqx.is_inexact_array)
    x = normal(4, 3)

    def loss(params):
        return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

    assert_agrees_with_nested_jvp(loss, as_double(params), k=2)


def pendulum_loss(diffrax, adjoint):
    """A loss of the solution of a damped pendulum, by its two parameters."""

    def field(t, y, args):
        angle, speed = y
        damping, stiffness = args
        return jnp.array([speed, -damping * speed - stiffness * jnp.sin(angle)])

    def loss(parameters):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=2.0,
            dt0=0.1,
            y0=jnp.array([1.0, 0.0]),
            args=parameters,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
            adjoint=adjoint,
        )
        return jnp.sum(solution.ys**2)

    return loss, jnp.array([0.3, 1.5])


def test_diffrax_with_an_adaptive_step_and_its_default_adjoint():
    diffrax = pytest.importorskip("diffrax", reason="diffrax is not installed")
    loss, parameters = pendulum_loss(diffrax, diffrax.RecursiveCheckpointAdjoint())
    for theirs in (jax.hessian, lambda f: jax.jacfwd(jax.jacfwd(f))):
        with pytest.raises(TypeError, match="custom_vjp"):
            theirs(loss)(parameters)
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.jacrev(jax.jacrev(loss))(parameters)
    hessian = jax.jit(fomoh_jax.hessian(loss))(parameters)
    # Its adjoint for forward mode runs the same steps and is differentiable by JAX.
    same, _ = pendulum_loss(diffrax, diffrax.ForwardMode())
    assert_close(hessian, jax.jit(jax.jacfwd(jax.jacfwd(same)))(parameters), rtol=1e-9)


def test_optimistix_root():
    optimistix = pytest.importorskip("optimistix", reason="optimistix is not installed")

    def root(a):
        solver = optimistix.Newton(rtol=1e-12, atol=1e-12)
        function = lambda y, a: y + 0.5 * jnp.sin(y) * a[0] - a
        return optimistix.root_find(function, solver, jnp.zeros(2), a).value

    a = jnp.array([0.7, -0.3])
    model = fomoh_jax.quadratic_model(root, (a,), (jnp.eye(2),))
    expected = jax.jit(jax.jacfwd(jax.jacfwd(root)))(a)
    assert_close(jnp.moveaxis(model.curvature, (0, 1), (1, 2)), expected, rtol=1e-9)


def test_optimistix_minimises_by_our_optimisers():
    optimistix = pytest.importorskip("optimistix", reason="optimistix is not installed")
    trust = fomoh_jax.solvers.trust_region(tries=5, scaled=True)
    coordinates, scale = fomoh_jax.directions.coordinates(), optax.scale(-1.0)
    newton = optax.chain(fomoh_jax.scale_by_hyperplane(coordinates, trust), scale)
    random = fomoh_jax.fomoh_kd(2, solver=trust, key=jax.random.PRNGKey(0))
    rosenbrock = lambda x, _: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    for optimiser in (newton, random):
        solver = optimistix.OptaxMinimiser(optimiser, rtol=1e-8, atol=1e-8)
        start = jnp.array([-1.2, 1.0])
        found = optimistix.minimise(rosenbrock, solver, start, max_steps=200).value
        assert_close(found, jnp.ones(2), rtol=1e-6)


def test_numpyro_log_density():
    numpyro = pytest.importorskip("numpyro", reason="numpyro is not installed")
    import numpyro.distributions as dist
    from numpyro.infer.util import log_density

    x = normal(6, 2)
    counts = jnp.array([0, 3, 1, 2, 5, 1])

    def model():
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        weights = numpyro.sample("weights", dist.StudentT(3.0, 0.0, scale).expand([2]))
        mixing = numpyro.sample("mixing", dist.Dirichlet(jnp.ones(3)))
        rate = jnp.exp(x @ weights) + mixing[0]
        numpyro.sample("counts", dist.Poisson(rate), obs=counts)

    def density(values):
        return log_density(model, (), {}, values)[0]

    values = {
        "scale": jnp.array(1.3),
        "weights": jnp.array([0.2, -0.4]),
        "mixing": jnp.array([0.2, 0.5, 0.3]),
    }
    directions = random_directions((values,), 3)
    ours = jax.jit(lambda v: fomoh_jax.quadratic_model(density, (values,), v))
    assert np.all(np.isfinite(ours(directions).curvature))
    assert_agrees_with_nested_jvp(density, values, k=2)


@pytest.fixture
def netkets_mesh():
    """NetKet sets one for the whole process when imported; it ends with a test."""
    kinds = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((8,), ("S",), axis_types=kinds)):
        pytest.importorskip("netket", reason="netket is not installed")
        yield
    assert jax.sharding.get_abstract_mesh().empty


def netket_kinetic_energies(dimensions):
    """Three particles with different masses: NetKet's operator, and by one pass."""
    import netket as nk

    from experiments.vmc import netket_times

    space = netket_times.FreeSpace(d=dimensions)
    particles = netket_times.Particle(N=3, geometry=space)
    mass = np.repeat([1.0, 2.0, 5.0], dimensions)
    theirs = nk.operator.KineticEnergy(particles, mass)
    ours = netket_times.ForwardKineticEnergy(particles, mass)
    return netket_times, particles, theirs, ours


@pytest.mark.usefixtures("netkets_mesh")
@pytest.mark.parametrize("name", ["gaussian", "real network", "complex network"])
def test_netket_local_kinetic_energies(name):
    times, particles, theirs, ours = netket_kinetic_energies(dimensions=3)
    network = times.LogPsi((8,), is_complex="complex" in name)
    model = times.nk.models.Gaussian() if name == "gaussian" else network
    x = normal(5, particles.size)
    variables = model.init(jax.random.key(0), x)
    local = jax.jit(lambda op: op._expect_kernel(model.apply, variables, x))
    assert_close(local(ours), local(theirs), rtol=1e-13)


@pytest.mark.usefixtures("netkets_mesh")
def test_netket_energy_from_a_sampler():
    times, particles, theirs, ours = netket_kinetic_energies(dimensions=2)
    nk, model = times.nk, times.LogPsi((8,), is_complex=True)
    well = nk.operator.PotentialEnergy(particles, lambda x: 0.5 * jnp.sum(x**2))
    # The chains are split over the eight devices of tests/conftest.py.
    sampler = nk.sampler.MetropolisGaussian(particles, sigma=0.3, n_chains=8)
    seeds = {"seed": 0, "sampler_seed": 1}
    state = nk.vqs.MCState(sampler, model, n_samples=16, **seeds)
    energy, expected = (state.expect(kinetic + well) for kinetic in (ours, theirs))
    assert_close((energy.mean, energy.variance), (expected.mean, expected.variance))


@pytest.mark.usefixtures("netkets_mesh")
def test_netket_s_times_are_a_table(tmp_path, monkeypatch):
    times, *_ = netket_kinetic_energies(dimensions=3)
    row = times.rows(samples=4)[3]
    monkeypatch.setattr(times, "rows", lambda samples: [row])
    times.main(times.Config(samples=4, repeats=1, out=tmp_path))
    text = (tmp_path / "vmc" / "netket.md").read_text()
    assert "| complex, float32 |" in text
    assert " error |" not in text


# It warns of a missing boundary condition, and equinox of how it keeps its layers.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_jinns_loss_of_a_reaction_and_diffusion():
    jinns = pytest.importorskip("jinns", reason="jinns is not installed")
    eqx = pytest.importorskip("equinox")

    class Reaction(jinns.loss.PDEStatio):
        operator: Callable = eqx.field(kw_only=True, static=True)

        def equation(self, x, u, params):
            known = params.eq_params
            diffusion = known.diffusion * self.operator(x, u, params)
            return diffusion + u(x, params) * (known.rate - u(x, params))

    def by_one_pass(x, u, params):
        return fomoh_jax.laplacian(lambda x: u(x, params)[0])(x)

    layers = ((eqx.nn.Linear, 3, 8), (jnp.tanh,), (eqx.nn.Linear, 8, 1))
    u, network = jinns.nn.PINN_MLP.create(
        key=jax.random.key(0), eqx_list=layers, eq_type="PDEStatio"
    )
    known = {"diffusion": jnp.array(0.7), "rate": jnp.array(1.5)}
    params = jinns.parameters.Params(nn_params=as_double(network), eq_params=known)
    weights, points = jinns.loss.LossWeightsPDEStatio(dyn_loss=1.0), normal(5, 3)
    batch = jinns.data.PDEStatioBatch(domain_batch=points, border_batch=None)

    def residuals_and_gradient(operator):
        equation = Reaction(operator=operator)
        loss = jinns.loss.LossPDEStatio(
            u=u, dynamic_loss=equation, loss_weights=weights, params=params
        )

        def both(params):
            residuals = jax.vmap(lambda x: equation.equation(x, u, params))(points)
            return residuals, jax.grad(lambda p: loss.evaluate(p, batch)[0])(params)

        return jax.jit(both)(params)

    ours = residuals_and_gradient(by_one_pass)
    assert_close(ours, residuals_and_gradient(jinns.loss.laplacian_rev), rtol=1e-12)
