"""Replacements for words of other frameworks that have no counterpart here, for messages."""

from __future__ import annotations

from collections.abc import Mapping

_UNNEEDED = "remove it; "
_ALL_CHANNELS = f"{_UNNEEDED}channels always come last"
_READS_THE_LAST = (
    "a layer reads the one before it; `x: conv(64, 3x3)` labels a value, from which a branch can "
    "start: `add { x | conv(64, 1x1) }`"
)
_ACTIVATION = "activations are separate layers: `conv(...) -> relu`"
_NORM = (
    "the normalisations are `batchnorm`, `groupnorm`, `instancenorm`, `layernorm`, `rmsnorm` and "
    "`lrn`"
)
_PIXELS = (
    "pixels are scaled to 0..1 already; `normalize` in `data` subtracts a mean and divides by a "
    "deviation"
)
_STATISTICS = "write `normalize = by(mean=[0.5], std=[0.5])` in `data`; it is not an augmentation"
_DECAY = "write `optimizer = sgd(lr=0.1, weight_decay=1e-4)`, which decays all weights"
_FREEZE = '`freeze = "conv1.*"` in `train` keeps the weights of the layer labelled `conv1`'
_WITHOUT_LOADER = f"{_UNNEEDED}images are read in the background"
_SE = "`mul { identity | globalavgpool -> fc(8) -> relu -> fc(64) -> sigmoid -> reshape(1x1x64) }`"
_WHOLE_RUN = "the schedule covers the whole run: its length is `epochs` in `train`"
_EPOCHS = "a run is measured in `epochs`, passes over the training images"
_RECORDED = (
    "loss and accuracy are recorded every epoch; `best = max(val_accuracy)` chooses the epoch"
)
_MIXED = "write `precision = mixed`, which is bfloat16, or `mixed(float16)`"
_UNSHUFFLE = (
    "`pixel_shuffle` has no inverse here; a convolution whose kernel equals its stride, such as "
    "`conv(64, 2x2, stride=2)`, combines the same pixels"
)
_OWN_DATA = '`folder("DIR")`, `arrays("FILE.npz")` and `csv("FILE.csv")` read your own data'
_CROP_SIZE = "remove it: a crop has the size of the net's input"

_COMMANDS = {
    "fit finetune": "train FILE",
    "resume": "train --resume DIR",
    "validate valid": "check FILE` or `netdsl eval WEIGHTS",
    "val evaluate score": "eval WEIGHTS",
    "build": "compile FILE",
    "lint verify": "check FILE",
    "format": "fmt FILE",
    "infer inference classify detect demo": "predict WEIGHTS IMAGE",
    "convert": "import MODEL.onnx -o FILE.net` or `netdsl export WEIGHTS -o MODEL.onnx",
    "show info print describe": "summary FILE",
    "profile benchmark bench": "time FILE",
    "tune search": "sweep FILE --vary 'train.optimizer.lr=[0.1, 0.01]'",
    "help": "--help",
    "version": "--version",
}
"""Names of other tools for commands, with what to write here after `netdsl`."""

_OPTIONS = {
    "gpu gpus cuda": "--device cuda",
    "cpu no_cuda": "--device cpu",
    "output output_dir save_dir logdir": "--out DIR",
    "checkpoint continue restore": "--resume DIR",
    "dataset data_dir data_path": "--data DIR",
}
"""Names of other tools for options, with ours."""

_ABSENT_OPTIONS = {
    "split subset part": (
        "without an option, the test images are used if there are any, else those that were held "
        "out for validation"
    ),
    "format include type opset": (
        "the suffix of `-o` chooses the format: `-o x.onnx`, `-o x.safetensors`"
    ),
    "workers num_workers": _WITHOUT_LOADER,
    "o out output output_file": "results are printed; `> FILE` at the end writes them to a file",
}
"""Options of other tools that have no counterpart, with what happens instead."""

ADVICE: Mapping[str, Mapping[str, str]] = {
    "command": _COMMANDS,
    "option": _OPTIONS,
    "option without counterpart": _ABSENT_OPTIONS,
    "layer": {
        "adaptiveavgpool adaptiveavgpool2d": (
            "`avgpool(to=7x7)` gives images of 7x7; `globalavgpool` gives one pixel"
        ),
        "adaptivemaxpool adaptivemaxpool2d": (
            "`maxpool(to=7x7)` gives images of 7x7; `globalmaxpool` gives one pixel"
        ),
        "pixel_unshuffle space_to_depth reorg": _UNSHUFFLE,
        "separableconv2d separable_conv sepconv": (
            "it is two layers: `depthwise(3x3, pad=same, bias=no) -> conv(64, 1x1)`"
        ),
        "reflectionpad2d reflection_pad": "write `pad(height=1, width=1, mode=reflect)`",
        "replicationpad2d replication_pad": "write `pad(height=1, width=1, mode=edge)`",
        "layernormalization layernorm2d channel_layernorm": (
            "`layernorm(axis=channels)` normalises each pixel over its channels, `layernorm` "
            "each sample over all its values"
        ),
        "upsamplingbilinear2d": "write `upsample(2, bilinear)`",
        "hardtanh": "write `clamp(-1, 1)`",
        "activation act": _ACTIVATION,
        "sequential module_list model": (
            "chain the layers with `->`; a `block` names a chain that is used several times"
        ),
        "attention self_attention multi_head_attention transformer": (
            "there is no spatial attention; a gate weights the channels: "
            "`mul { identity | ... -> sigmoid }`"
        ),
        "se squeeze_excitation squeeze_excite se_block": f"write it as a gate: {_SE}",
        "permute transpose": (
            "there is nothing to permute: images are height x width x channels everywhere"
        ),
        "rescaling rescale normalize": _PIXELS,
        "norm normalization": _NORM,
        "shortcut skip residual res": (
            "write `add { conv(64, 3x3, pad=same) | identity }`; a label names an earlier "
            "value: `add { x | identity }`"
        ),
        "route": "label the layers, `a: conv(8, 3x3)`, and join them: `concat { a | b }`",
        "eltwise merge": "`add { a | b }`, `mul { a | b }` and `sub { a | b }` join branches",
        "softmax_with_loss softmax_loss loss": (
            "the loss belongs in `train`: `loss = cross_entropy`; a net ends in plain scores"
        ),
        "accuracy": _RECORDED,
        "lstm gru rnn embedding": (
            "there are no layers for sequences: a net takes one image at a time"
        ),
        "yolo region detection": "there is no object detection: a net classifies whole images",
        "noise gaussian_noise": (
            "there is no layer for noise; `dropout(0.1)` regularises, and so does `augment`"
        ),
        "dropout2d spatialdropout2d": (
            "`dropout` zeroes single values; there is no layer that zeroes whole channels"
        ),
        "cropping2d crop": "write `slice(height=[1, 31], width=[1, 31])`",
        "split chunk": (
            "`slice(channels=[0, 8])` takes some channels; a label can be read several times"
        ),
        "squeeze unsqueeze expand_dims": "write `flatten`, or `reshape(1x1x64)`",
        "resblock residual_block res_block basic_block": (
            "write `add { conv(64, 3x3, pad=same) -> relu | identity }`; a `block` gives it a name"
        ),
        "argmax argmin": (
            f"{_UNNEEDED}a net ends in plain scores, from which `netdsl predict` chooses"
        ),
        "lambda": "define your own layers with `block`",
        "conv1d conv3d": "images have two dimensions: write `conv(8, 3x3)`",
    },
    "parameter": {
        "activation act": _ACTIVATION,
        "batch_normalize batch_norm normalizer": (
            "it is a separate layer: `conv(8, 3x3, bias=no) -> batchnorm`"
        ),
        "norm normalization norm_layer": (
            "a normalisation is a separate layer: `conv(8, 3x3, bias=no) -> batchnorm`"
        ),
        "pad_mode padding_mode": (
            "a border of pixels is a separate layer: `pad(1, 1, mode=reflect) -> conv(8, 3x3)`"
        ),
        "global": "`globalavgpool` and `globalmaxpool` are layers of their own",
        "hue": f"{_UNNEEDED}the hue cannot be changed",
        "dropout": "it is a separate layer: `fc(64) -> dropout(0.5)`",
        "in_channels in_features num_features input_dim": ("remove it: the input size is inferred"),
        "input_shape": "the shape belongs in `input(28x28x1)`",
        "axis dim data_format": _ALL_CHANNELS,
        "inplace": f"{_UNNEEDED}memory is reused wherever possible",
        "bottom top input inputs from layers": _READS_THE_LAST,
        "name": "a label names a layer: `conv1: conv(8, 3x3)`",
        "requires_grad trainable frozen stopbackward": _FREEZE,
        "lr_mult lr_scale learning_rate lr": (
            '`lr_scale = [("conv1.*", 2)]` in `train` scales the rate of a labelled layer'
        ),
        "kernel_regularizer bias_regularizer activity_regularizer regularizer l2 "
        "weight_decay decay_mult": _DECAY,
        "kernel_constraint bias_constraint": "there are no constraints; " + _DECAY,
        "bias_initializer bias_filler": "`bias` takes an initialiser: `bias=constant(0.1)`",
        "seed": "`seed` belongs in `train`: every random number depends on it",
        "keep_prob": "`rate` is the share that is zeroed: 1 - keep_prob",
        "betas": "write `beta1=<0.9>, beta2=<0.999>`",
        "decay": (
            "`weight_decay` pulls weights towards zero; `schedule = inverse` lowers the rate"
        ),
        "dampening amsgrad foreach fused maximize track_running_stats": (
            f"{_UNNEEDED}there is no such option"
        ),
        "clipnorm clipvalue global_clipnorm": "`clip = 1` in `train` limits the gradients",
        "t_max total_steps max_steps max_iter decay_steps t_initial": _WHOLE_RUN,
        "step_size": ("list the epochs, here every <30> of 100: `step(at=range(<30>, 100, <30>))`"),
        "warmup_steps": "`warmup` is a number of epochs",
        "from_logits": f"{_UNNEEDED}a net ends in plain scores (logits)",
        "reduction": f"{_UNNEEDED}the loss is the mean over the batch",
    },
    "parameter of plateau": {
        "mode": f"{_UNNEEDED}`plateau` watches the loss, of which less is better",
    },
    "parameter of arrays": {
        "images labels x y data x_train y_train images_path labels_path": (
            "one file contains all arrays: `np.savez(FILE, images=..., labels=...)`, then "
            "`arrays(FILE)`"
        ),
    },
    "key of data": {
        "train val valid train_data val_data test test_data validation_data": (
            '`source = folder("DIR")` reads DIR/train, DIR/val and DIR/test; '
            "`validation = 0.1` holds out a share of the training images instead"
        ),
        "train_split train_size train_ratio": (
            "`validation` is the share that is held out, 0.2 for a split of 80 to 20: "
            "`validation = 0.2`"
        ),
    },
    "key": {
        "expect": "expectations belong in the recipe itself: `expect val_accuracy > 0.9`",
        "compile": f"{_UNNEEDED}every net is compiled",
        "mode": "`best = max(val_accuracy)` states whether larger or smaller is better",
        "unfreeze": (
            "a recipe trains all that it does not `freeze`; `freeze = []` trains everything"
        ),
        "shuffle": "training images are shuffled in every epoch; `seed` determines the order",
        "num_workers workers pin_memory prefetch persistent_workers cache": (_WITHOUT_LOADER),
        "drop_last": f"{_UNNEEDED}an epoch leaves out what does not fill a batch",
        "l2 regularizer regularization decay": (
            "it belongs in the optimizer: `optimizer = sgd(lr=0.1, weight_decay=1e-4)`"
        ),
        "betas beta1 beta2": "they belong in the optimizer: `adam(beta1=0.9, beta2=0.999)`",
        "warmup warmup_epochs": (
            "it belongs in the schedule, in epochs: `schedule = cosine(warmup=<5>)`"
        ),
        "warmup_steps burn_in": (
            "it belongs in the schedule, in epochs: `schedule = cosine(warmup=5)`"
        ),
        "gamma lr_decay step_size milestones lr_policy": (
            "it belongs in the schedule: `schedule = step(at=[30, 60], gamma=0.1)`"
        ),
        "device gpu gpus cuda accelerator": ("it is an option: `netdsl train FILE --device cuda`"),
        "output_dir out save_dir log_dir checkpoint_dir save_path": (
            "it is an option: `netdsl train FILE --out DIR`"
        ),
        "resume resume_from": (
            "it is a command: `netdsl train --resume DIR`; `after` starts from the best "
            "weights of another recipe"
        ),
        "checkpoint": (
            '`init = weights("FILE")` starts from weights; `netdsl train --resume DIR` resumes '
            "a run"
        ),
        "pretrained weights load_weights": 'write `init = weights(<"FILE">)`',
        "amp fp16 bf16 mixed_precision half": _MIXED,
        "steps iterations max_iter max_steps max_batches steps_per_epoch": _EPOCHS,
        "metric metrics log logging logger": _RECORDED,
        "log_every log_interval log_steps log_every_n_steps": (
            f"{_UNNEEDED}every epoch is recorded"
        ),
        "save_steps every_n_train_steps": "write `save_every = steps(<500>)`",
        "eval_steps": "write `validate_every = steps(<500>)`",
        "verbose": "it is an option of the command; see `netdsl train --help`",
        "callbacks": "`patience`, `best`, `schedule` and `keep_every` take their place",
        "dropout": "it is a layer of the net: `fc(64) -> dropout(0.5)`",
        "image_size img_size input_size input_shape imgsz target_size": (
            "the net's input determines it: `input(224x224x3)`; pictures of other sizes need "
            "`augment = [random_resized_crop]` and `eval_transform = [resize, center_crop]`"
        ),
        "mean std": "write `normalize = by(mean=[0.5], std=[0.5])`",
        "rescale": _PIXELS,
        "root path data_dir dir train_dir": _OWN_DATA,
        "classes num_classes class_names": (
            f"{_UNNEEDED}the data determine the classes, the last layer their number: `fc(10)`"
        ),
    },
    "augmentation": {
        "to_tensor totensorv2 to_image to_dtype rescale": (
            "remove it: pixels are scaled to 0..1 already"
        ),
        "normalize": _STATISTICS,
    },
    "precision": {
        "float16 fp16 half 16": "write `mixed(float16)`",
        "bfloat16 bf16 amp auto mixed_float16 mixed_bfloat16": _MIXED,
        "float32 fp32 single 32": "write `full`",
    },
    "schedule": {
        "cosine_restarts cosineannealingwarmrestarts cosinedecayrestarts sgdr": (
            "there are no restarts; `cosine` falls once, over the whole run"
        ),
        "exponential exponentiallr exponentialdecay exp": (
            "`step(at=range(1, 90), gamma=0.95)` multiplies the rate by 0.95 after each epoch"
        ),
        "cyclic cycliclr triangular triangular2 cyclical": (
            "there are no cycles; `onecycle` rises and falls once, over the whole run"
        ),
        "warmup linear_warmup": "every schedule takes it, in epochs: `cosine(warmup=5)`",
    },
    "statistics": {
        "normalize standardize": "write `by(mean=[0.5], std=[0.5])`",
    },
    "source of weights": {
        "he xavier normal uniform orthogonal zeros": (
            "initialisers belong to layers: `conv(8, 3x3, weight=he)`"
        ),
        "imagenet pretrained": (
            'write `weights("FILE")`; `netdsl import` makes such a file from weights of PyTorch'
        ),
    },
    "fact": {
        "flops": "`macs` counts multiply-accumulates, each of which is two operations",
    },
    "value": {
        "relu leaky leaky_relu tanh sigmoid gelu silu swish elu selu mish softmax": _ACTIVATION,
        "valid": "write `pad=0`, which is Keras's `valid`",
        "params parameters model": (
            "the optimizer updates all weights; `freeze` in `train` leaves some out"
        ),
    },
    "value of sampling": {
        "weighted stratified oversample": (
            "`balanced` draws the same number of images of each class"
        ),
    },
    "value of mode": {
        "bicubic area lanczos": "write `bilinear`, the smoothest there is",
        "symmetric": "write `reflect`, which does not repeat the outermost pixels",
        "replicate replication": "write `edge`",
    },
    "value of at": {
        "optimizer": f"{_UNNEEDED}a schedule is for the recipe's optimizer: `step(at=[5])`",
    },
    "value of lr": {
        "cosine step poly plateau onecycle constant inverse exponential": (
            "the schedule is a key of `train`: `schedule = cosine`"
        ),
    },
    "operand": {
        "in_channels input_channels in_ch in_c inplanes in_planes c_in cin": (
            "`in.channels` is the number of channels of the input"
        ),
        "cross_entropy focal bce mse": (
            "a weighted sum is a list of pairs: `loss = [(cross_entropy, 1), (mse, 0.5)]`"
        ),
    },
    "argument": {"center_crop random_resized_crop": _CROP_SIZE},
    "use": {
        **dict.fromkeys(
            ("conv.pad", "maxpool.pad", "avgpool.pad", "depthwise.pad", "local.pad"),
            "`pad=1` is the same on all sides, `pad=1x2` has height and width, "
            "`pad=[1, 1, 2, 2]` is top, bottom, left, right",
        ),
        "cutout.size": "`cutout(8)` is a square of 8x8 pixels",
        "data.source": _OWN_DATA,
        "data.normalize": (
            "write `by(mean=<[0.5]>, std=<[0.25]>)` with one number for each channel, or one "
            "for all"
        ),
        "data.validation": ("`validation = 0.1` is a share, `validation = 500` a number of images"),
        "train.schedule": (
            "one schedule applies to the whole run; `constant` keeps the rate constant"
        ),
        "train.ema": "write `ema = 0.999`",
        "train.freeze": 'write `freeze = "conv1.*"`: a glob of weights',
        "no_decay": 'write `no_decay=["*.bias"]`: a list of globs of weights',
        "train.recompute": 'write `recompute = "stage1.*"`: a glob of blocks or layers',
        "train.init": 'write `init = weights("FILE")`',
        "train.best": "write `best = max(val_accuracy)`",
    },
}
"""Replacements for foreign words, by what they stand for; a key lists several words.
Examples in `<>` are replaced by the values that the word was given."""

WITHOUT_COUNTERPART: Mapping[str, str] = {
    "augmentation": "vflip random_vertical_flip vertical_flip rotation rotate random_rotation "
    "random_affine rand_augment auto_augment trivial_augment augmix gaussian_blur grayscale "
    "random_grayscale random_perspective random_zoom mosaic",
    "optimizer": "nadam radam adamax adagrad adadelta lamb lion lbfgs ftrl adafactor",
    "loss": "hinge kl kldiv l1 mae huber ctc triplet dice iou contrastive",
    "source": "caltech101 celeba cifar100 coco emnist flowers102 food101 imagenet kmnist "
    "mnist_m omniglot places365 qmnist stl10 svhn tiny_imagenet voc",
}
