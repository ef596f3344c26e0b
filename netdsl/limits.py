"""Resource limits on a single text, in one place: a .net file from a stranger is safe to open.

Every limit is above what networks need (the deepest published residual network, of 1,202 layers, is
checked completely, with its recipe) and below what takes long.
"""

from __future__ import annotations

MAX_FILE_CHARACTERS = 1_000_000
"""Characters of a file."""
MAX_IR_CHARACTERS = 32_000_000
"""Characters of a graph's IR text."""
MAX_AXES = 32
"""Axes of a tensor in such a text."""
MAX_FILE_BYTES = 4 * MAX_FILE_CHARACTERS
"""Bytes that are read of a file."""
MAX_TOKENS = 40_000
"""Words and signs in a file and the files that it uses, without comments."""
MAX_TOKEN_CHARACTERS = 1_000
"""Characters of a name, a number or a size."""
MAX_NESTING_DEPTH = 40
"""Nested brackets, and nested lists in a value."""
MAX_CALL_DEPTH = 80
"""Nested blocks, groups and repeats while a net is expanded."""
MAX_EXPRESSION_DEPTH = 1_000
"""Nested expressions, including those of the functions that they call."""
MAX_CHAIN_LENGTH = 50
"""Files that use files, nets that are instances of instances, recipes based on recipes."""
MAX_ELABORATION_STEPS = 120_000
"""Layers, the operators that they consist of, loop iterations and calls of functions."""
STEPS_PER_LAYER = 3
"""Steps that a layer takes besides those of its operators."""
MAX_EXPRESSION_VALUES = 1_000_000
"""Values of all expressions, counting each entry of a list and each part of a text."""
MAX_LIST_LENGTH = 10_000
"""Entries of a list, including those of nested lists."""
MAX_GLOBS = 100
"""Globs in a key of a recipe, each of which is matched against every weight."""
GLOB_MATCHES_PER_STEP = 50
"""Glob matches against weights that count as one step."""
MAX_REPEATS = 10_000
"""Repeats of one `*`."""
MAX_NUMBER = 10**15
MAX_TENSOR_SIZE = 2**40
MAX_TRIAL_SIZE = 2**25
"""Total values of a network and its gradient when a test tries it on random images."""
MAX_TRIAL_WORK = 4 * 10**9
"""Multiply-accumulates, plus ten times the values, of all trials in a command."""
MAX_EPOCHS = 100_000
"""Epochs of a run: each of its checkpoints contains the metrics of every epoch."""
MAX_METRICS_BYTES = 2**27
"""Bytes of the metrics of a run that are plotted: ten times as much memory is taken for them."""
MAX_SWEEP_RUNS = 10_000
"""Runs of a sweep."""
MAX_CLASS_NAME = 1_000
"""Characters of the name of a class."""
MAX_ERRORS = 20
"""Errors, and warnings, reported for a text; the rest of the text is not examined."""
MAX_MESSAGE_CHARACTERS = 1_000
"""Characters of a message, a help line or a note."""
MAX_NOTES = 20
MAX_NAME_CHARACTERS = 200
MAX_KNOWN_NAMES = 2_000
"""The longest name that gets a spelling suggestion, and the most names that are searched for
one."""
MAX_ONNX_STRUCTURE = 16 * 2**20
"""Bytes of an ONNX file besides the values of its tensors."""
MAX_ONNX_NODES = 20_000
"""Nodes of an ONNX graph, with those of its functions, and its tensors."""
MAX_ONNX_DEPTH = 8
"""Graphs inside graphs of an ONNX file."""
MAX_FOLDED_VALUES = 10**7
"""Values of a constant that an ONNX graph computes, other than its weights."""
MAX_WEIGHT_USES = 16
"""How often the weights of an ONNX graph are used, on average: each use gets a copy."""
DEFAULT_ASCENT_STEPS, DEFAULT_ATTRIBUTION_STEPS = 256, 64
"""Steps of feature visualisation, and of the path of integrated gradients."""
MAX_DEFAULT_FEATURES = 16
"""How many channels are visualised if none are named."""
