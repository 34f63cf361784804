# %% [markdown]
# # A primitive of your own
#
# This tutorial gives JAX a function that it does not have, Lambert's W from scipy, as a
# primitive, and makes it differentiable to second order in three ways: by the
# derivative that JAX is told, by the rule of a family, and by a rule that is written by
# hand. The guide is [rules for primitives](../guide/primitives.md).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.special
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import fomoh_jax
from fomoh_jax.hyperdual import HyperDual

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The primitive
#
# Lambert's W is the solution of w exp(w) = x. JAX calls scipy for its values, outside
# of the compiled program. The primitive needs an implementation, the shape of its
# result, and what `jit` and `vmap` make of it. We count how many numbers scipy is asked
# for.

# %%
asked = 0


def by_scipy(x):
    global asked
    asked += x.size
    return np.asarray(scipy.special.lambertw(x).real, x.dtype)


def implementation(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(by_scipy, shape, x, vmap_method="expand_dims")


def new_primitive(name):
    primitive = Primitive(name)
    primitive.def_impl(implementation)
    primitive.def_abstract_eval(lambda x: x)
    lowering = mlir.lower_fun(implementation, multiple_results=False)
    mlir.register_lowering(primitive, lowering)
    batching.primitive_batchers[primitive] = lambda args, axes: (
        primitive.bind(*args),
        axes[0],
    )
    return primitive


lambert_p = new_primitive("lambert_w")
print("W(1) =", lambert_p.bind(jnp.array(1.0)))

# %% [markdown]
# ## Without a rule
#
# Neither JAX nor fomoh_jax knows a derivative of it. The error names the primitive, and
# its notes say where in the program it is.


# %%
def energy(x):
    return jnp.sum(lambert_p.bind(jnp.exp(x)) ** 2)


x = jnp.array([0.1, 0.5, 2.0])
try:
    fomoh_jax.hessian(energy)(x)
except NotImplementedError as error:
    print(error)

# %% [markdown]
# ## What the answer should be
#
# For a check that shares nothing with the primitive, we write W as twenty iterations of
# Newton's method in JAX and nest `jax.jvp`.


# %%
def lambert_by_newton(x):
    w = jnp.log1p(x)
    for _ in range(20):
        w = w - (w - x * jnp.exp(-w)) / (1 + w)
    return w


def second_derivative_by_jvp(x, direction):
    fun = lambda x: jnp.sum(lambert_by_newton(jnp.exp(x)) ** 2)
    slope = lambda x: jax.jvp(fun, (x,), (direction,))[1]
    return jax.jvp(slope, (x,), (direction,))[1]


directions = jax.random.normal(jax.random.key(0), (4, 3))
direction = directions[0]
expected = second_derivative_by_jvp(x, direction)


def check(name):
    global asked
    asked = 0
    model = fomoh_jax.quadratic_model(energy, (x,), (directions,))
    error = float(jnp.abs(model.curvature[0, 0] - expected))
    print(f"{name}: vᵀHv = {model.curvature[0, 0]:.6f}, off by {error:.0e},", end=" ")
    print(f"{asked} values of scipy")
    return error, asked


# %% [markdown]
# ## The derivative for JAX
#
# A derivative that JAX can differentiate again is enough for the generic rule of
# fomoh_jax, which takes `jvp` of `jvp`. It is W' = exp(−w) / (1 + w).


# %%
def lambert_jvp(primals, tangents):
    w = lambert_p.bind(*primals)
    return w, jnp.exp(-w) / (1 + w) * ad.instantiate_zeros(tangents[0])


ad.primitive_jvps[lambert_p] = lambert_jvp
errors = {}
errors["generic"], values_of_generic = check("generic rule")

# %% [markdown]
# ## The rule of its family
#
# W acts on each element by itself. One line says so, and the rule of the elementwise
# primitives takes the place of the generic one. It takes both derivatives once for each
# element, and multiplies with them along all directions.

# %%
fomoh_jax.register_rule(lambert_p)(fomoh_jax.hyperdual.elementwise)
errors["elementwise"], values_of_family = check("elementwise rule")

# %% [markdown]
# ## A rule by hand
#
# A rule of one's own says how both derivatives follow from w. It needs no derivative
# that JAX knows. For y = f(x) with tangents xᵢ and second-order coefficients xᵢⱼ it
# returns f' xᵢ and f' xᵢⱼ + f'' xᵢ xⱼ; the form knows which pairs of directions are
# wanted.


# %%
@fomoh_jax.register_rule(lambert_p)
def lambert_rule(form, op, args):
    (x,) = args
    (w,) = op(x.primal)
    first = jnp.exp(-w) / (1 + w)
    second = -(first**2) * (2 + w) / (1 + w)
    curved = second * form.product(x.tangents, x.tangents)
    return [HyperDual(w, first * x.tangents, first * x.seconds + curved)]


errors["by hand"], values_by_hand = check("rule by hand")

# %% [markdown]
# All that the library offers uses the rule: here the Laplacian, under `jit`, on a grid.

# %%
axis = jnp.linspace(-3.0, 3.0, 101)
curvature = jax.jit(jax.vmap(fomoh_jax.laplacian(energy)))(axis[:, None])

figure, panel = plt.subplots(figsize=(6, 3.5))
panel.plot(axis, jax.vmap(energy)(axis[:, None]), color="black", label="W(exp x)²")
panel.plot(axis, curvature, "--", color="grey", label="its second derivative")
panel.set(xlabel="x", ylabel="value")
panel.legend()
figure.tight_layout()

# %% [markdown]
# ## Without a primitive: `custom_jvp` and `custom_vjp`
#
# Often a function needs no primitive. `jax.custom_jvp` states a derivative of a
# function, and fomoh_jax honours it to second order. It also differentiates a function
# with `jax.custom_vjp`, which `jax.jvp` refuses, by looking into the function itself.


# %%
@jax.custom_jvp
def lambert_w(x):
    return implementation(x)


@lambert_w.defjvp
def _(primals, tangents):
    w = lambert_w(*primals)
    return w, jnp.exp(-w) / (1 + w) * tangents[0]


@jax.custom_vjp
def squared(w):
    return jnp.sum(w**2)


squared.defvjp(lambda w: (jnp.sum(w**2), w), lambda w, g: (2 * g * w,))

curve = fomoh_jax.directional_curvature(
    lambda x: squared(lambert_w(jnp.exp(x))), (x,), (direction[None],)
)
errors["custom_jvp"] = float(jnp.abs(curve.curvature[0] - expected))
print(f"vᵀHv = {curve.curvature[0]:.6f}, off by {errors['custom_jvp']:.0e}")
