"""The data sets this library knows by name. No torch here: the commands reject an unknown name before it is imported."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

from engine.errors import ConfigurationError

SPLITS = ("train", "val", "test")
PREFIXES = {
    "folder:": "class folders: PATH/train/<class>/* (and val, test), or PATH/<class>/* with an optional PATH/split.json",
    "npz:": "an npz file with images (N,H,W) or (N,H,W,C) uint8, labels (N,) int, optional split and class_names (K,)",
}

Channels = tuple[float, ...]
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# (120.39586422, 115.59361427, 104.54012653) and (70.68188272, 68.27635443, 72.54505529) of 255.
MINI_STATISTICS = ((0.47214064, 0.45330829, 0.40996128), (0.27718385, 0.26775041, 0.28449041))


class SetInfo(NamedTuple):
    """What is known about a named set before any file is read.

    ``folders`` are tried below the data root before the root itself. ``size`` is the resolution of its images, at which
    image files are decoded when none is asked for. ``statistics`` are the published channel means and standard deviations in
    units of the full range; None means that they are computed from the training images.
    """

    description: str
    folders: tuple[str, ...]
    how_to_get: str
    size: int | None = None
    statistics: tuple[Channels, Channels] | None = None


_CIFAR100 = "the official cifar-100-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html"
_CIFAR100_FOLDERS = ("cifar-100", "cifar100", "CIFAR-100")

SETS: dict[str, SetInfo] = {
    "digits": SetInfo("scikit-learn's 8x8 digits, each turned by 0, 90, 180 and 270 degrees: 40 classes, embedded", (), "", 8),
    "omniglot": SetInfo(
        "handwritten characters, 28x28; Vinyals class split; training classes also turned by 90, 180 and 270 degrees",
        ("omniglot", "Omniglot", "omniglot-py"),
        "images_background.zip and images_evaluation.zip of github.com/brendenlake/omniglot, or their folders",
        28,
    ),
    "cifar-fs": SetInfo(
        "CIFAR-100 regrouped for few-shot learning, 32x32, 64/16/20 classes",
        ("cifar_fs", "cifar-fs", "CIFAR-FS", *_CIFAR100_FOLDERS),
        f"{_CIFAR100}, CIFAR_FS_train.pickle (val, test), or class folders data/<class>/*.png",
        32,
        CIFAR100_STATISTICS,
    ),
    "cifar10": SetInfo(
        "CIFAR-10, 32x32; the training part is halved into train and val",
        ("cifar10", "cifar-10", "CIFAR-10", "cifar10_subset"),
        "the official cifar-10-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html",
        32,
        CIFAR10_STATISTICS,
    ),
    "cifar100": SetInfo(
        "CIFAR-100, 32x32; the training part is halved into train and val",
        _CIFAR100_FOLDERS,
        _CIFAR100,
        32,
        CIFAR100_STATISTICS,
    ),
    "miniimagenet": SetInfo(
        "miniImageNet, 84x84, 64/16/20 classes (Ravi and Larochelle)",
        ("miniimagenet", "mini-imagenet", "miniImageNet", "mini_imagenet", "MiniImagenet"),
        "class folders train/<class>/*, images/ with train.csv val.csv test.csv, mini-imagenet-cache-train.pkl (val, test) "
        "or miniImageNet_category_split_*.pickle",
        84,
        MINI_STATISTICS,
    ),
    "tieredimagenet": SetInfo(
        "tieredImageNet, 84x84, 351/97/160 classes (Ren et al.)",
        ("tieredimagenet", "tiered-imagenet", "tieredImageNet", "tiered_imagenet"),
        "class folders train/<class>/*, or train_images_png.pkl or train_images.npz with train_labels.pkl (val, test)",
        84,
        MINI_STATISTICS,
    ),
    "fc100": SetInfo(
        "FC100, CIFAR-100 split by superclass, 32x32, 60/20/20 classes",
        ("fc100", "FC100", *_CIFAR100_FOLDERS),
        f"{_CIFAR100}, FC100_train.pickle (val, test), or class folders train/<class>/*",
        32,
        CIFAR100_STATISTICS,
    ),
    "cub": SetInfo(
        "CUB-200-2011 birds, 84x84, 100/50/50 classes",
        ("cub", "CUB", "CUB_200_2011"),
        "CUB_200_2011.tgz of www.vision.caltech.edu/datasets/cub_200_2011, unpacked",
        84,
    ),
    "aircraft": SetInfo(
        "FGVC-Aircraft variants, 84x84, 70/15/15 classes",
        ("aircraft", "fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b"),
        "fgvc-aircraft-2013b.tar.gz of www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, unpacked, or class folders",
        84,
    ),
    "vgg-flower": SetInfo(
        "VGG Flowers 102, 84x84, 71/15/16 classes",
        ("vgg-flower", "vgg_flower", "vgg_flowers", "flowers102"),
        "102flowers.tgz (unpacked: jpg/) and imagelabels.mat of www.robots.ox.ac.uk/~vgg/data/flowers/102, or class folders "
        "named 1 to 102 (or 001.name)",
        84,
    ),
    "cars": SetInfo(
        "Stanford Cars, 84x84; the class split comes from your own split.json",
        ("cars", "stanford_cars", "stanford-cars"),
        'class folders <class>/* and split.json: {"train": [class, ...], "val": [...], "test": [...]}',
        84,
    ),
    "imagenet": SetInfo(
        "ImageNet-1k, 224x224; per class 10 % of the training images are train and 2.5 % val, the official val part is test",
        ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
        "class folders train/<class>/*.JPEG made from the archives of image-net.org, and val/<class>/*.JPEG, or val/*.JPEG with "
        "LOC_val_solution.csv or the devkit's ILSVRC2012_validation_ground_truth.txt and meta.mat",
        224,
        IMAGENET_STATISTICS,
    ),
}


def check_name(name: str) -> None:
    """Raise :class:`ConfigurationError` unless ``name`` is a known set, ``folder:PATH`` or ``npz:PATH``."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            if name == prefix:
                raise ConfigurationError(f"data set {name!r} names no path; write {prefix}PATH")
            return
    if name in SETS:
        return
    close = get_close_matches(name.lower(), SETS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(SETS)}, folder:PATH and npz:PATH"
    raise ConfigurationError(f"unknown data set {name!r}; {hint}")
