"""What README says is so."""

import inspect
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

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = {
    f"{page.relative_to(ROOT)} {i}": block
    for page in PAGES
    for i, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    )
}


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


@pytest.fixture
def as_a_user_begins():
    """In float32, unless an example says otherwise."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.usefixtures("as_a_user_begins")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(name, capsys):
    block = EXAMPLES[name]
    exec(block, {})
    printed = re.findall(r"# prints (.*)", block)
    assert capsys.readouterr().out.split() == " ".join(printed).split()


def test_every_guide_has_examples_and_every_link_leads_somewhere():
    assert {name.split()[0] for name in EXAMPLES} >= {
        str(page.relative_to(ROOT)) for page in (ROOT / "docs/guide").glob("*.md")
    } - {"docs/guide/devices.md"}
    others = [ROOT / "experiments/README.md", ROOT / "CHANGELOG.md"]
    for page in [*PAGES, *others]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_public_module_has_its_page():
    def modules(module):
        yield module.__name__
        for name in module.__all__:
            if inspect.ismodule(getattr(module, name)):
                yield from modules(getattr(module, name))

    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    documented = re.findall(r"^::: (.*)$", pages, re.MULTILINE)
    assert sorted(documented) == sorted(modules(fomoh_jax))


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_both_commands_start_from_nothing_but_python():
    commands = re.findall(r"<!-- the [a-z ]* -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("python3 -m venv .venv")
