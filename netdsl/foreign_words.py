"""The words of other frameworks: what each is called here, or what takes its place.

Words are compared without capitals and underscores: `MaxPool2d`, `max_pool2d` and `maxpool2d` are
one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches

from netdsl.foreign_advice import ADVICE, WITHOUT_COUNTERPART


def normalize_word(word: str) -> str:
    """A word without capitals and underscores, as the tables have them."""
    return word.lower().replace("_", "")


def find_counterpart(word: str, known: Mapping[str, str]) -> str | None:
    """What a foreign word is called here. `known` maps normalized words to the names that can
    stand in its place."""
    names = _COUNTERPARTS.get(normalize_word(word), ())
    return next((known[n] for n in map(normalize_word, names) if n in known), None)


def find_near_counterpart(word: str, known: Mapping[str, str]) -> str | None:
    """What a misspelt foreign word is called here; `known` as in `find_counterpart`."""
    words = [w for w in _COUNTERPARTS if find_counterpart(w, known)]
    near = get_close_matches(normalize_word(word), words, n=1, cutoff=_MISSPELT)
    return find_counterpart(near[0], known) if near else None


_MISSPELT = 0.85
"""How similar, as difflib counts it, a misspelling is to its word."""


def find_advice(word: str, kinds: Collection[str], values: Sequence[str] = ()) -> str | None:
    """What takes the place of a foreign word that stands for a thing of one of these `kinds`,
    such as `layer`, or `key of train`; with the `values` that the word was given, as written."""
    key = normalize_word(word)
    found = next((_ADVICE[k][key] for k in kinds if key in _ADVICE.get(k, {})), None)
    return None if found is None else fill_examples(found, values)


_EXAMPLE = re.compile(r"<(.*?)>")


def fill_examples(advice: str, values: Sequence[str] = ()) -> str:
    """An advice with its examples, as `<0.9>`, replaced by as many different values; as they are
    for any other number of them."""
    examples = dict.fromkeys(_EXAMPLE.findall(advice))
    chosen = dict(zip(examples, values if len(values) == len(examples) else examples, strict=True))
    return _EXAMPLE.sub(lambda m: chosen[m[1]], advice)


def is_without_counterpart(word: str, kind: str) -> bool:
    """Whether a word is known to mean something that does not exist here, however near its
    spelling is to a name."""
    return normalize_word(word) in _WITHOUT_COUNTERPART.get(kind, ())


def _split(entries: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The pairs of a table whose keys or values list several words."""
    return (
        (normalize_word(word), text) for words, text in entries.items() for word in words.split()
    )


_LAYERS = {
    "dense linear affine fully_connected connected inner_product ip lazy_linear": "fc",
    "conv2d convolution convolutional": "conv",
    "deconv conv_transpose conv2dtranspose convtranspose2d deconvolution deconvolutional": (
        "convtranspose"
    ),
    "dwconv depthwise_conv depthwiseconv2d": "depthwise",
    "locally_connected locallyconnected2d": "local",
    "pool max_pool maxpool2d maxpooling2d pooling": "maxpool",
    "avg_pool avgpool2d averagepooling2d average_pool": "avgpool",
    "gap global_avg_pool globalaveragepooling2d global_pool": "globalavgpool",
    "global_max_pool globalmaxpooling2d globalmaxpool2d": "globalmaxpool",
    "bn batch_norm batchnorm1d batchnorm2d batchnormalization": "batchnorm",
    "gn group_norm groupnormalization": "groupnorm",
    "ln layer_norm": "layernorm",
    "rms_norm rmsnormalization": "rmsnorm",
    "instance_norm instancenorm2d": "instancenorm",
    "localresponsenorm local_response_norm": "lrn",
    "layerscale": "scale",
    "droppath stochastic_depth": "drop_path",
    "channel_shuffle": "shuffle",
    "pixelshuffle depth_to_space": "pixel_shuffle",
    "interpolate upsampling2d resize upsamplingnearest2d": "upsample",
    "zeropadding2d zeropad2d constantpad2d padding": "pad",
    "view unflatten": "reshape",
    "sum": "add",
    "multiply": "mul",
    "subtract": "sub",
    "cat concatenate": "concat",
    "lrelu leakyrelu leaky": "leaky_relu",
    "swish": "silu",
    "hswish": "hardswish",
    "hsigmoid": "hardsigmoid",
    "logistic": "sigmoid",
    "clip clip_by_value": "clamp",
    "input_layer": "input",
}
_INITIALISERS = {
    "kaiming kaiming_normal he_normal msra": "he",
    "kaiming_uniform": "he_uniform",
    "lecun_normal": "lecun",
    "glorot glorot_uniform xavier_uniform": "xavier",
    "glorot_normal": "xavier_normal",
    "truncated_normal": "trunc_normal",
    "gaussian random_normal randn": "normal",
    "random_uniform": "uniform",
    "zero": "zeros",
    "one": "ones",
}
_TRAINING = {
    "crossentropyloss crossentropy categorical_crossentropy nll nllloss "
    "sparse_categorical_crossentropy softmax_cross_entropy softmaxwithloss": "cross_entropy",
    "binary_crossentropy binary_cross_entropy bceloss bcewithlogitsloss": "bce",
    "focal_loss categorical_focal_crossentropy": "focal",
    "mseloss mean_squared_error l2 euclideanloss": "mse",
    "cosineannealinglr cosineannealing cosinedecay": "cosine",
    "steplr multisteplr multistep piecewise piecewiseconstantdecay": "step",
    "reducelronplateau reduce_on_plateau": "plateau",
    "onecyclelr 1cycle": "onecycle",
    "polynomial polynomiallr polynomialdecay linear linearlr": "poly",
    "inv inversetimedecay": "inverse",
    "fixed none": "constant",
    "momentum nesterov": "sgd",
    "random_horizontal_flip random_flip horizontal_flip fliplr flip mirror": "hflip",
    "random_erasing coarse_dropout": "cutout",
    "crop": "random_crop",
}
_PARAMETERS = {
    "filters out_channels num_output num_filters features": "channels",
    "num_output num_classes out_features neurons classes out": "units",
    "kernel_size size pool_size window ksize filter_size": "kernel",
    "strides": "stride",
    "padding": "pad",
    "group num_groups": "groups",
    "use_bias bias_term": "bias",
    "kernel_initializer weight_filler weight_init init initializer": "weight",
    "dilation_rate": "dilation",
    "depth_multiplier channel_multiplier": "multiplier",
    "scale_factor upscale_factor": "factor",
    "output_size size": "to",
    "min": "low",
    "max": "high",
    "init_values init_value": "init",
    "p drop_prob prob": "rate",
    "negative_slope alpha": "slope",
    "epsilon": "eps",
    "ceil_mode": "ceil",
    "count_include_pad": "include_pad",
    "padding_mode interpolation": "mode",
    "target_shape": "shape",
    "length": "size",
    "learning_rate lr0 initial_lr base_lr": "lr",
    "l2 wd regularizer weight_regularizer": "weight_decay",
    "use_nesterov nesterov_momentum": "nesterov",
    "rho alpha": "decay",
    "eta_min min_lr lr_min end_lr end_learning_rate": "end",
    "milestones boundaries": "at",
    "warmup_epochs": "warmup",
    "pct_start": "rise",
    "label_smoothing": "smoothing",
    "class_weight weight pos_weight alpha": "class_weights",
    "root dir directory": "path",
    "imagefolder image_folder directory images flow_from_directory image_dataset_from_directory": (
        "folder"
    ),
    "npz numpy npy np tensordataset": "arrays",
    "table dataframe pandas": "csv",
}
_KEYS = {
    "batch_size bs": "batch",
    "dataset": "source",
    "val_split validation_split split": "validation",
    "ema_decay ema_momentum model_ema": "ema",
    "grad_clip gradient_clip_val max_grad_norm clipnorm clip_norm": "clip",
    "scheduler lr_schedule lr_scheduler": "schedule",
    "optim opt": "optimizer",
    "early_stop early_stopping": "patience",
    "monitor save_best_only": "best",
    "grad_accumulation gradient_accumulation_steps gradient_accumulation grad_accum_steps "
    "grad_accum accumulate_grad_batches accumulation_steps subdivisions": "accumulate",
    "augmentation transform transforms": "augment",
    "num_epochs max_epochs n_epochs epoch": "epochs",
    "random_state random_seed manual_seed": "seed",
    "criterion": "loss",
    "save_freq save_interval checkpoint_every checkpoint_interval": "save_every",
    "save_period every_n_epochs": "keep_every",
    "val_every eval_every eval_interval eval_freq val_interval val_check_interval "
    "validation_freq validation_interval check_val_every_n_epoch": "validate_every",
    "scale_lr auto_scale_lr lr_scaling": "lr_rule",
    "model network": "net",
}
_DEVICES = {"gpu cuda:0 gpu:0 nvidia": "cuda"}
_TABLES = (_LAYERS, _INITIALISERS, _TRAINING, _PARAMETERS, _KEYS, _DEVICES)

_COUNTERPARTS: dict[str, tuple[str, ...]] = {}
"""Normalized foreign words, and the names that each may have here, the likeliest first."""
for _table in _TABLES:
    for _word, _name in _split(_table):
        _COUNTERPARTS[_word] = (*_COUNTERPARTS.get(_word, ()), _name)

_ADVICE: dict[str, dict[str, str]] = {k: dict(_split(entries)) for k, entries in ADVICE.items()}
"""What takes the place of normalized foreign words, by what they stand for."""

_WITHOUT_COUNTERPART: dict[str, frozenset[str]] = {
    kind: frozenset(map(normalize_word, words.split()))
    for kind, words in WITHOUT_COUNTERPART.items()
}
"""Normalized words that mean something that does not exist here."""
