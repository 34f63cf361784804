"""Public JAX only, and no JAX that returns wrong numbers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fomoh_jax
from fomoh_jax._compat import require_sound_jax

PACKAGE = Path(fomoh_jax.__file__).parent


def test_nothing_private_is_imported_from_jax():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"jax\._src|from jax import _", path.read_text()), path


@pytest.mark.slow
def test_the_library_imports_neither_flax_nor_the_experiments():
    code = (
        "import sys, fomoh_jax; "
        "assert not {'flax', 'experiments', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hyperdual_knows_nothing_of_optimisation():
    allowed = ("_hyperdual", "_compat", "_refusals", "_types", "_xla")
    paths = list((PACKAGE / "_hyperdual").rglob("*.py"))
    assert paths
    for path in paths:
        imports = re.findall(r"^(?:from|import) (\S+)", path.read_text(), re.MULTILINE)
        for name in imports:
            package, _, module = name.partition(".")
            assert package != "optax", path
            assert package != "fomoh_jax" or module.startswith(allowed), path


def test_jax_0_10_2_is_refused_with_a_way_out():
    with pytest.raises(ImportError, match=r"0\.10\.2.*wrong numbers.*pip install"):
        require_sound_jax("0.10.2")
    require_sound_jax("0.10.1")
    require_sound_jax("0.12.0.1")


@pytest.mark.slow
def test_importing_under_jax_0_10_2_says_so():
    code = (
        "import jax; jax.__version__ = '0.10.2'\n"
        "try:\n"
        "  import fomoh_jax\n"
        "except ImportError as error:\n"
        "  print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "fomoh_jax does not run on jax 0.10.2" in run.stdout
