"""Sphinx's settings. `make docs` builds the site into build/docs; no network is needed, and every warning is an error.

Sphinx, because it is kept (MkDocs is not, since 2024) and reads docstrings from the imported package. Pages are
Markdown (myst_parser); docs/generators.py makes the reference pages from the sources, so that nothing is written down
twice.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import sagareid

project = "SAGA-ReID for FastReID"
release = version = sagareid.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "generators"]
exclude_patterns = ["Thumbs.db", ".DS_Store"]
smartquotes = False  # quotes are often those of code
suppress_warnings = [
    "misc.highlighting_failure"
]  # a language that GitHub colours and Pygments does not know, such as csv

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring: a link where it is ours, else as code
autoclass_content = "both"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
# what the extra sagareid[serve] brings: the pages are built without it, too
autodoc_mock_imports = [name for name in ("fastapi", "pydantic", "starlette", "uvicorn") if find_spec(name) is None]
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
