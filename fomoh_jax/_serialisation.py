"""The names under which ``jax.export`` keeps what the library returns.

An exported function can be serialised if each node of its arguments and results is of
a type that has a name. These are part of what is written, and stay as they are.
"""

from jax import export

from fomoh_jax._fomoh_ap import EffortState
from fomoh_jax._hyperdual import DirectionalCurvature, QuadraticModel
from fomoh_jax._operators import ValueGradientHessian, ValueGradientLaplacian
from fomoh_jax._transforms import (
    ScaleByActivityGradientState,
    ScaleByForwardGradientState,
    ScaleByHyperplaneState,
)
from fomoh_jax.curvature import ConjugateGradients, Eigenpairs, Estimate
from fomoh_jax.directions import HistoryState
from fomoh_jax.solvers import SolverState
from fomoh_jax.solvers.descents import ReachState, TrustState
from fomoh_jax.solvers.searches import GainRatioState, SelfTuningState

NAMED = (
    QuadraticModel,
    DirectionalCurvature,
    ValueGradientHessian,
    ValueGradientLaplacian,
    ScaleByActivityGradientState,
    ScaleByForwardGradientState,
    ScaleByHyperplaneState,
    HistoryState,
    EffortState,
    SolverState,
    ReachState,
    TrustState,
    GainRatioState,
    SelfTuningState,
    Estimate,
    Eigenpairs,
    ConjugateGradients,
)

for named in NAMED:
    export.register_namedtuple_serialization(
        named, serialized_name=f"fomoh_jax.{named.__name__}"
    )
