"""How to use a whole pipeline, for its model card."""

from t2i.model.adapter import Facts
from t2i.model.precision import Precision
from t2i.model.usage import drawing_code

_USE = """A complete diffusers pipeline. Its UNet was fine-tuned with t2i and has the EMA weights.

```python
{code}
```"""


def how_to_use(pipeline: str, facts: Facts, precision: Precision) -> str:
    """Returns how to load a pipeline of a class, as Markdown."""
    settings = dict(zip(("height", "width"), facts.size_px, strict=True))
    return _USE.format(code=drawing_code(pipeline, "path/to/this/folder", precision, "a prompt", settings))
