"""How Sphinx builds the site; `python tools/site.py` calls it on a tree that it has put together."""
from latex2mathml.converter import convert

project, author, copyright = 'pokegan', 'The pokegan developers', '2026 onwards, the pokegan developers'
extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx_design']
exclude_patterns = ['_build', 'jupyter_execute']
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'attrs_inline']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # the outputs are those of the stored runs
nb_ipywidgets_js = {}      # sliders need a kernel; each lesson shows a still of them
suppress_warnings = ['mystnb.unknown_mime_type', 'myst.header']
html_theme = 'furo'
html_title = 'pokegan'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = False
html_show_sphinx = False
html_extra_path = ['extra']  # the playground, and what must lie at the top


def visit_math(self, node):
    "Formulas as MathML, which browsers draw themselves: no script, no font, and screen readers can read it."
    block = node.tagname == 'math_block'
    self.body.append(convert(node.astext(), display='block' if block else 'inline'))
    from docutils.nodes import SkipNode
    raise SkipNode


def setup(app): app.add_html_math_renderer('mathml', (visit_math, None), (visit_math, None))


html_math_renderer = 'mathml'
