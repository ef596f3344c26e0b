"""How much one text may take, in one place: a .net file from a stranger is safe to open.

Every limit lies above what nets are made of (the deepest published residual net, of 1,202 layers,
is checked whole, with its recipe), and below what takes long.
"""

from __future__ import annotations

MAX_FILE_CHARACTERS = 1_000_000
"""Characters of a file."""
MAX_IR_CHARACTERS = 32_000_000
"""Characters of a graph's text."""
MAX_AXES = 32
"""Of a tensor in such a text."""
MAX_FILE_BYTES = 4 * MAX_FILE_CHARACTERS
"""Bytes that are read of one."""
MAX_TOKENS = 40_000
"""Words and signs in a file and in those that it uses, without comments."""
MAX_TOKEN_CHARACTERS = 1_000
"""Characters of a name, a number or a size."""
MAX_NESTING_DEPTH = 40
"""Brackets in each other, and lists in a value."""
MAX_CALL_DEPTH = 80
"""Blocks, groups and repeats in each other while a net is expanded."""
MAX_CHAIN_LENGTH = 50
"""Files that use files, nets that are instances of instances, recipes after recipes."""
MAX_ELABORATION_STEPS = 120_000
"""Layers, the operators that they are made of, and turns of loops."""
STEPS_PER_LAYER = 3
"""Steps that a layer takes beside those of its operators."""
MAX_EXPRESSION_VALUES = 1_000_000
"""Values that all expressions have, each entry of a list and each part of a text counted."""
MAX_LIST_LENGTH = 10_000
"""Entries of a list, those of lists in it included."""
MAX_GLOBS = 100
"""Globs in a key of a recipe, each of which is tried on every weight."""
GLOB_MATCHES_PER_STEP = 50
"""Globs tried on weights that count as one step."""
MAX_REPEATS = 10_000
"""Repeats by one `*`."""
MAX_NUMBER = 10**15
MAX_TENSOR_SIZE = 2**40
MAX_TRIAL_SIZE = 2**25
"""Values that a net and its gradient have in all where a test tries it on drawn images."""
MAX_TRIAL_WORK = 4 * 10**9
"""Multiply-accumulates, and values ten times, of all trials in a command."""
MAX_EPOCHS = 100_000
"""Epochs of a run: each of its checkpoints carries what every epoch has measured."""
MAX_ERRORS = 20
"""Errors that are shown of a text, and warnings; what follows the last is not looked at."""
MAX_MESSAGE_CHARACTERS = 1_000
"""Characters of a message, a help line or a note."""
MAX_NOTES = 20
MAX_NAME_CHARACTERS = 200
MAX_KNOWN_NAMES = 2_000
"""Characters of a name for which one like it is looked for, and names that are looked through."""
