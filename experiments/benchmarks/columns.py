"""The titles of a report's columns, and their names for the contenders."""

from experiments.benchmarks import depth, hessian, networks, sparse
from experiments.benchmarks.measurement import ADJOINT, OURS

# Short names of contenders in titles.
NAMES = {title: name for name, title in depth.TITLES.items()} | {
    **dict.fromkeys(("ours", "forward", "whole"), OURS),
    "adjoint": ADJOINT,
    "nested": "nested jvp",
    "reverse": "forward over reverse",
    "loop": "jvp of grad, in a loop",
    "forward plan": hessian.FORWARD,
    "dense": sparse.DENSE,
    "auto": networks.AUTO,
}
COUNTS = {
    "FLOPs": "flops",
    "temporaries": "temporary_bytes",
    "compile time": "compile_seconds",
}
TIMES = ("ours ms", "adjoint ms", "nested ms", "nested ÷ ours", "nested ÷ adjoint")
FRACTIONS = [f"{c}, {way} ÷ nested" for c in COUNTS for way in ("forward", "adjoint")]
REVERSE = ("reverse ÷ ours", "reverse ÷ adjoint", "jet ÷ ours")
LAPLACIANS = ("ours ms", "nested ms", "nested ÷ ours", "jet ÷ ours", "folx ÷ ours")
LAPLACIAN_COUNTS = [f"{count}, ours ÷ nested" for count in COUNTS]
HESSIANS = (
    *("ours ms", "forward plan ÷ ours", "adjoint ÷ ours"),
    *("jax.hessian ÷ ours", "nested ÷ ours"),
    *("temporaries, ours ÷ jax.hessian", "compile time, ours ÷ jax.hessian"),
)
SPARSE_HESSIANS = (
    *("ours ms", "asdex ÷ ours", "jax.hessian ÷ ours", "dense ÷ ours"),
    *("ours, MB", "asdex, MB", "jax.hessian, MB"),
)
SPARSE_COMPILATION = (
    *("ours, compile s", "asdex, compile s", "jax.hessian, compile s"),
    *("compile time, ours ÷ asdex", "compile time, ours ÷ jax.hessian"),
)
STEPS = ("ours ms", "SGD ms", "Adam ms", "SGD ÷ ours", "Adam ÷ ours")
STEP_COUNTS = ("FLOPs, ours ÷ Adam", "temporaries, ours ÷ Adam")
DIRECTIONS = (
    *("ours ms", "forward pass ms", "Gaussian ÷ ours", "Gaussian, deferred ÷ ours"),
    *("SGD ÷ ours", "forward pass ÷ ours", "FLOPs, ours ÷ forward pass"),
    *("ours, MB", "Gaussian, MB", "Gaussian, deferred, MB"),
)
GRADIENTS = (
    *("ours ms", "jax.grad ms", "2 blocks ms", "4 probes ms", "jax.grad ÷ ours"),
    *("ours, MB", "jax.grad, MB", "2 blocks, MB", "FLOPs, ours ÷ jax.grad"),
)
KINETIC = (
    *("ours ms", "faster folx ÷ ours", "folx ÷ ours", "folx, sparsity 6 ÷ ours"),
    *("jax.hessian ÷ ours", "loop ÷ ours", "temporaries, ours ÷ folx"),
    *("temporaries, ours ÷ folx, sparsity 6", "compile time, ours ÷ folx, sparsity 6"),
)
NODES = (
    *("ours ms", "folx ÷ ours", "folx, sparsity 4 ÷ ours"),
    *("temporaries, ours ÷ folx", "temporaries, ours ÷ folx, sparsity 4"),
    "compile time, ours ÷ folx, sparsity 4",
)
RESIDUALS = (
    *("ours ms", "nested ÷ ours", "jax.hessian ÷ ours", "jet ÷ ours", "folx ÷ ours"),
    *("temporaries, ours ÷ nested", "temporaries, ours ÷ folx"),
)
COORDINATES = (
    *("ours ms", "jet ms", "jet ÷ ours", "ours, MB", "jet, MB"),
    "FLOPs, ours ÷ jet",
)
NETWORKS = (
    *("ours ms", "auto ms", "nested ms", "nested ÷ ours", "nested ÷ adjoint"),
    *("auto ÷ ours", "reverse ÷ ours", "reverse ÷ adjoint"),
    "temporaries, ours ÷ nested",
)
COMPILATION = (
    *("ours, compile s", "adjoint, compile s", "nested, compile s"),
    *(f"compile time, {x} ÷ nested" for x in ("ours", "auto", "adjoint", "reverse")),
)
DEPTHS = (*(f"{title}, MB" for title in depth.TITLES.values()), "FLOPs, ours ÷ nested")
# The titles of each of a table's Markdown tables; those of width depend on its rows.
TABLES = {
    "hyperplane": [TIMES + REVERSE, FRACTIONS],
    "operators": [LAPLACIANS, LAPLACIAN_COUNTS],
    "step": [STEPS + STEP_COUNTS],
    "directions": [DIRECTIONS],
    "gradient": [GRADIENTS],
    "hessian": [HESSIANS],
    "sparse": [SPARSE_HESSIANS, SPARSE_COMPILATION],
    "nodes": [NODES],
    "kinetic": [KINETIC],
    "pinn": [RESIDUALS],
    "stde": [COORDINATES],
    "networks": [NETWORKS, COMPILATION],
    "depth": [DEPTHS],
}
