"""Types and shapes in the signatures of fomoh_jax, checked at every call.

As ``jaxtyping.install_import_hook`` does it, but for functions inside functions. These
are made anew at each call, and to wrap one takes a millisecond: a quarter of the time
of the tests. Without them it is a tenth, and a second a process.
"""

import ast
import functools
import sys
from importlib.machinery import PathFinder, SourceFileLoader

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

PACKAGE, CHECKED = "fomoh_jax", "_jaxtyped"
# As type checkers have it, an int is a float, too.
TYPECHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True))
UNCHECKED = {
    # These hand what they are given to functions that read it.
    *("fomoh_jax._aliases", "fomoh_jax._transforms"),
    # Called for every equation, with no shape in their signatures.
    *("fomoh_jax._hyperdual.environment", "fomoh_jax._hyperdual.registry"),
    "fomoh_jax._activations.graph",
}


class CheckedLoader(SourceFileLoader):
    """Loads a module with a decorator on each of its functions, methods and classes."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)  # and nothing that is kept in __pycache__
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data, path, *, _optimization=-1):
        tree = ast.parse(data, path)
        decorate(tree.body)
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimization)

    def exec_module(self, module):
        vars(module)[CHECKED] = functools.partial(jaxtyped, typechecker=TYPECHECKER)
        super().exec_module(module)


class CheckedFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] != PACKAGE or name in UNCHECKED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


def decorate(body):
    """Put the decorator on functions that take anything, and on classes.

    A function that says what it raises, and a class with ``__post_init__``, read their
    arguments themselves; JAX makes the nodes of its trees with whatever a function of
    their leaves returns.
    """
    for node in body:
        decorator = ast.copy_location(ast.Name(CHECKED, ast.Load()), node)
        if isinstance(node, ast.FunctionDef):
            parameters = [
                arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)
            ]
            if "Raises:" in (ast.get_docstring(node) or ""):
                for arg in parameters:
                    arg.annotation = None
            if {arg.arg for arg in parameters} - {"self"}:
                node.decorator_list.append(decorator)
        elif isinstance(node, ast.ClassDef):
            methods = {getattr(method, "name", None) for method in node.body}
            is_node = any("register" in ast.unparse(d) for d in node.decorator_list)
            if not is_node and "__post_init__" not in methods:
                node.decorator_list.insert(0, decorator)
            decorate(node.body)


def check_signatures():
    """Check those of the modules that are imported from now on."""
    assert PACKAGE not in sys.modules
    sys.meta_path.insert(0, CheckedFinder)
