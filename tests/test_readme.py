"""What README says is so."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import jet

import fomoh_jax
from tests.programs import max_pool
from tests.reference import assert_close, normal

README = (Path(__file__).parent.parent / "README.md").read_text()


@jax.custom_vjp
def only_backward(x):
    return jnp.sin(x) * x


only_backward.defvjp(lambda x: (only_backward(x), x), lambda x, g: (g * jnp.cos(x),))

# The rows of README's table: a program, and the same one without its custom_vjp.
ROWS = {
    "`jax.custom_vjp`": (only_backward, lambda x: jnp.sin(x) * x),
    "`jax.nn.relu`": (lambda x: jax.nn.relu(jnp.sin(x)),) * 2,
    "max-pooling": (lambda x: max_pool(jnp.sin(x).reshape(1, 2, 2, 1)),) * 2,
    "`lax.scan`": (lambda x: lax.scan(lambda c, y: (c * y, c), x[0], x)[1],) * 2,
    "`lax.while_loop`": (
        lambda x: lax.while_loop(lambda c: c[0] < 9, lambda c: c**2 + x, x + 2),
    )
    * 2,
    "`lax.cond`": (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),) * 2,
    "`jnp.sort`": (lambda x: jnp.sort(x) ** 2,) * 2,
    "`jnp.linalg.solve`": (
        lambda x: jnp.linalg.solve(5 * jnp.eye(4) + jnp.outer(x, x), x),
    )
    * 2,
    "`jnp.linalg.cholesky`": (
        lambda x: jnp.linalg.cholesky(5 * jnp.eye(4) + jnp.outer(x, x)),
    )
    * 2,
}


def nested(fun):
    return lambda x: jax.jvp(lambda y: jax.jvp(fun, (y,), (x,))[1], (x,), (x,))[1]


def works(call):
    try:
        call()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_what_works(name):
    fun, same = ROWS[name]
    x = normal(4)
    (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", README, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    _, _, curvature = fomoh_jax.directional_curvature(fun, (x,), (x[None],))
    assert_close(curvature[0], nested(same)(x))
    done = {True: "✓", False: "error"}
    assert cells == [
        done[works(lambda: nested(fun)(x))],
        done[works(lambda: jet.jet(fun, (x,), ((x, jnp.zeros(4)),)))],
        "✓",
    ]


def test_the_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 11
    for block in blocks:
        exec(block, {})
        printed = re.findall(r"# prints (.*)", block)
        assert capsys.readouterr().out.split() == " ".join(printed).split()


def test_both_commands_start_from_nothing_but_python():
    commands = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for command in commands[:2]:
        assert command.startswith("python3 -m venv .venv")
