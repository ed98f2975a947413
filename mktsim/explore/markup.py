"""What all HTML with data in it carries."""

from __future__ import annotations

from typing import Final

#: Attribute of elements with data in them: JupyterLab would typeset ``$5 and $6`` as mathematics.
NO_MATHEMATICS: Final = "class='mathjax_ignore tex2jax_ignore'"
