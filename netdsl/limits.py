"""How much one text may take, in one place: a .net file from a stranger is safe to open.

Every limit lies above what nets are made of (the deepest published residual net, of 1,202 layers,
is checked whole, with its recipe), and below what takes long.
"""

from __future__ import annotations

LONGEST_FILE = 1_000_000
"""Characters of a file."""
LONGEST_IR = 32_000_000
"""Characters of a graph's text."""
MOST_AXES = 32
"""Of a tensor in such a text."""
MOST_BYTES = 4 * LONGEST_FILE
"""Bytes that are read of one."""
MOST_WORDS = 40_000
"""Words and signs in a file and in those that it uses, without comments."""
LONGEST_WORD = 1_000
"""Characters of a name, a number or a size."""
DEEPEST_NESTING = 40
"""Brackets in each other, and lists in a value."""
DEEPEST_CALLS = 80
"""Blocks, groups and repeats in each other while a net is expanded."""
MOST_CHAINED = 50
"""Files that use files, nets that are instances of instances, recipes after recipes."""
MOST_STEPS = 120_000
"""Layers, the operators that they are made of, and turns of loops."""
LAYER_STEPS = 3
"""Steps that a layer takes beside those of its operators."""
MOST_LEAVES = 1_000_000
"""Values that all expressions have, each entry of a list and each part of a text counted."""
LONGEST_LIST = 10_000
"""Entries of a list, those of lists in it included."""
MOST_GLOBS = 100
"""Globs in a key of a recipe, each of which is tried on every weight."""
MATCHES_A_STEP = 50
"""Globs tried on weights that count as one step."""
MOST_REPEATS = 10_000
"""Repeats by one `*`."""
LARGEST_NUMBER = 10**15
LARGEST_TENSOR = 2**40
LARGEST_TRIAL = 2**25
"""Values that a net and its gradient have in all where a test tries it on drawn images."""
MOST_WORK = 4 * 10**9
"""Multiply-accumulates, and values ten times, of all trials in a command."""
MOST_EPOCHS = 100_000
"""Epochs of a run: each of its checkpoints carries what every epoch has measured."""
MOST_ERRORS = 20
"""Errors that are shown of a text, and warnings; what follows the last is not looked at."""
LONGEST_SENTENCE = 1_000
"""Characters of a message, a help line or a note."""
MOST_NOTES = 20
LONGEST_NAME = 200
MOST_KNOWN = 2_000
"""Characters of a name for which one like it is looked for, and names that are looked through."""
