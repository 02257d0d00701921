"""Settings of the site: `make docs` builds it into docs/_build/html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import elmo_jax

project, author = "elmo_jax", "the authors of elmo_jax"
release = elmo_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "directives"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"
smartquotes = False
nitpicky = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 60
python_use_unqualified_type_names = True
toc_object_entries = False
html_theme = "furo"
html_title = f"elmo_jax {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_copy_source = html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
