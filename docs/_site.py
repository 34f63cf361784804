"""What mkdocs is told: pages that lie outside ``docs``, and docstrings as they are.

Pages of the repository link to each other as files. The site has those of ``docs`` at
its root, and the others where they lie. With ``EXECUTE=1`` in the environment, every
tutorial and every Python example of a page is run first.
"""

import contextlib
import io
import os
import re
from pathlib import Path, PurePosixPath

import _tutorials
import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
ELSEWHERE = (
    *("README.md", "COVERAGE.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("experiments/README.md", "experiments/benchmarks/results/*.md"),
    *("experiments/benchmarks/results/*.png", "experiments/results/**/*.md"),
    "experiments/results/**/*.png",
)
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#]+)")


def on_files(files, config):
    """The pages and figures that are not in ``docs``."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for script in _tutorials.SCRIPTS:
        if os.environ.get("EXECUTE"):
            _tutorials.execute(script)
        try:
            page, figures = _tutorials.page_of(script)
        except ValueError as error:
            raise PluginError(str(error)) from error
        contents = {f"{script.stem}.md": page, **figures}
        for name, content in contents.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between files of the repository, as links between pages of the site."""
    source = PurePosixPath(page.file.src_uri)
    if os.environ.get("EXECUTE") and not page.url.startswith("tutorials/"):
        for block in BLOCK.findall(markdown):
            run(block, page.file.src_uri)
    path = page.file.abs_src_path
    lies = Path(path).parent if path else ROOT / "docs" / source.parent

    def moved(found):
        target = Path(os.path.normpath(lies / found[1]))
        uri = target.relative_to(ROOT).as_posix()
        uri = uri.removeprefix("docs/").replace(".ipynb", ".md")
        return "](" + os.path.relpath(uri, source.parent)

    text_and_code = FENCED.split(markdown)
    text_and_code[::2] = [LINK.sub(moved, text) for text in text_and_code[::2]]
    return "".join(text_and_code)


def run(block, page):
    """Run an example, which must print what its comments announce."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    announced = " ".join(re.findall(r"# prints (.*)", block))
    if printed.getvalue().split() != announced.split():
        raise ValueError(f"{page}: an example prints {printed.getvalue()!r}\n{block}")


class FromSphinx(griffe.Extension):
    """Roles and formulas of Sphinx, of which Markdown knows nothing."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = markdown_of(obj.docstring.value)


def markdown_of(text):
    """A docstring with MathML for its formulas and links for its roles."""
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    block = r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *$))*)"
    text = re.sub(block, _formula, text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", lambda m: _mathml(m[1], "inline"), text)
    return re.sub(r":(?:func|class|meth|mod):`~?([^`]*)`", _reference, text)


def _formula(found):
    indent, formula = found[1], " ".join(found[2].split())
    return f"{indent}<div>{_mathml(formula, 'block')}</div>\n"


def _mathml(formula, display):
    return convert(" ".join(formula.split()), display=display).replace("*", "&#x2217;")


def _reference(found):
    name = found[1]
    return f"[`{name}`][{name}]" if name.startswith("fomoh_jax") else f"`{name}`"
