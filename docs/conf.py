"""Sphinx configuration; `make docs` builds the pages."""

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
REPOSITORY = re.search(r'^Source = "(.*)"$', PYPROJECT, re.MULTILINE)[1]


class Keras:
    """A stand-in for the module, so that autodoc does not import TensorFlow."""

    Model = Layer = type("Model", (), {})

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments, **options):
        """Return the decorated class."""
        return arguments[0] if arguments and isinstance(arguments[0], type) else self


sys.modules["keras"] = Keras()

project = "bart-export"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]
default_role = "code"
highlight_language = "text"
html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_title = "bart-export"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_mock_imports = ["apache_beam"]
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True


class RepositoryLinks(SphinxTransform):
    """Resolves links to files outside docs/, also in included files, to the repository."""

    default_priority = 500

    def apply(self):
        """Resolve each link relative to the file that contains it."""
        for kind in (addnodes.pending_xref, addnodes.download_reference):
            for node in list(self.document.findall(kind)):
                target, _, anchor = node.get("reftarget", "").partition("#")
                if node.get("reftype") != "myst" or not target or target in self.env.found_docs:
                    continue
                suffix = ".md" if node.get("refdomain") == "doc" else ""
                file = os.path.normpath(Path(node.source).parent / f"{target}{suffix}")
                page = self.env.path2doc(file)
                if page in self.env.found_docs:
                    node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", page, anchor
                elif os.path.exists(file):
                    address = f"{REPOSITORY}/tree/main/{os.path.relpath(file, ROOT)}"
                    node.replace_self(nodes.reference("", "", *node.children, refuri=address))


def mark_code(app, context, lines):
    """Set options and commands in the text of `--help` as code."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith(".. "):
            line = re.sub(r"^(\|\s+)(bart-export .*|zcat .*)$", r"\1``\2``", line)
            if "``" not in line:
                line = re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"``\1``", line)
            lines[number] = line


def setup(app):
    """Register the hooks above."""
    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", mark_code)
    app.add_transform(RepositoryLinks)
