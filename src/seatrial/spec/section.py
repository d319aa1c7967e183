"""What every section of a recipe has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys are refused; a field's docstring is its help."""

    # Strict: "16" is not a number and 1 is not true. YAML 1.2 already gives each value its type.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
