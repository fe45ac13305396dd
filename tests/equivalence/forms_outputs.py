"""All forms of outputs: those with something for each example, and those that all examples make together.

None of them reaches a gradient, so each is computed from merged or gathered values where a part's own would not do.
"""

from __future__ import annotations

from tests.equivalence import forms_outputs_examples, forms_outputs_totals
from tests.equivalence.forms import named

OUTPUTS = named(forms_outputs_examples.PER_EXAMPLE, forms_outputs_totals.TOTALS, forms_outputs_totals.HALF)
