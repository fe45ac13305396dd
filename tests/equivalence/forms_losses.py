"""All forms of losses, by what a part would have to know of the other parts.

TOTALS      nothing: a sum or a mean, in whatever dress
EXAMPLES    nothing: losses of single examples of many kinds
RAGGED      nothing: some rows of the batch, chosen when it runs
WEIGHTED    totals that follow from inputs, known before the forward
TURNS       nothing: loops whose turns are the examples
STATISTICS  a few numbers that all examples make, in the middle of the step
RELATED     other examples
"""

from __future__ import annotations

from tests.equivalence.forms import named
from tests.equivalence.forms_losses_examples import EXAMPLES
from tests.equivalence.forms_losses_ragged import RAGGED
from tests.equivalence.forms_losses_related import RELATED
from tests.equivalence.forms_losses_statistics import STATISTICS
from tests.equivalence.forms_losses_totals import TOTALS
from tests.equivalence.forms_losses_turns import TURNS
from tests.equivalence.forms_losses_weighted import WEIGHTED

__all__ = ["EXAMPLES", "LOSSES", "RAGGED", "RELATED", "STATISTICS", "TOTALS", "TURNS", "WEIGHTED"]

LOSSES = named(TOTALS, EXAMPLES, TURNS, RAGGED, WEIGHTED, STATISTICS, RELATED)
