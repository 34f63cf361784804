"""What mkdocs is told: pages that lie outside ``docs``, and docstrings as they are.

Pages of the repository link to each other as files. The site has those of ``docs`` at
its root, and the others where they lie.
"""

import os
import re
from pathlib import Path, PurePosixPath

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
ELSEWHERE = (
    *("README.md", "COVERAGE.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("experiments/README.md", "experiments/benchmarks/results/*.md"),
    *("experiments/benchmarks/results/*.png", "experiments/results/**/*.md"),
    "experiments/results/**/*.png",
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#]+)")


def on_files(files, config):
    """The pages and figures that are not in ``docs``."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between files of the repository, as links between pages of the site."""
    source = PurePosixPath(page.file.src_uri)
    lies = Path(page.file.abs_src_path).parent

    def moved(found):
        target = Path(os.path.normpath(lies / found[1]))
        uri = target.relative_to(ROOT).as_posix()
        uri = uri.removeprefix("docs/")
        return "](" + os.path.relpath(uri, source.parent)

    return LINK.sub(moved, markdown)


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
