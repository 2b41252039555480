"""The rules of the product in plain code, written from the papers: a specification that runs.

Nothing here imports the product, and nothing here is fast. Each file is one rule, as its paper
states it; `tests/test_against_reference*.py` hold the product to them, in float64.

cell.py                the derived cell, the language model around it, its loss and penalties
search_cell.py         the cell under a mixture, its normalisation, and what is derived from it
hypergradient.py       the alphas' gradient: first order, second order, and the published look-ahead
averaging.py           clipped SGD, its average (ASGD), and when averaging begins (NT-ASGD)
dynamic_evaluation.py  weights that follow the text they are evaluated on
cache.py               the continuous cache
"""

from __future__ import annotations
