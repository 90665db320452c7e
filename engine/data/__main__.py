"""``python -m engine.data list`` and ``python -m engine.data check NAME|PATH``: which data there is. Downloads nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from engine.cli import run_command
from engine.data.names import PREFIXES, SETS, SPLITS, check_name
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from engine.data.image_set import ImageSet


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see python -m engine.data --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return 0; raises :class:`~engine.errors.EngineError` on anything a user can mend."""
    options = _parser().parse_args(argv)
    if options.command == "list":
        for name, text in [(k, v.description) for k, v in SETS.items()] + [(f"{k}PATH", v) for k, v in PREFIXES.items()]:
            print(f"{name:15} {text}")
    else:
        check(options.name, options.data_root, options.size)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m engine.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|check")
    commands.add_parser("list", help="name the known data sets")
    check = commands.add_parser("check", help="read a data set and print layout, counts, splits and content hash")
    check.add_argument("name", metavar="NAME|PATH", help="a known set, folder:PATH, npz:PATH, or just a path")
    check.add_argument("--data-root", metavar="DIR", help="folder that holds data sets (default: ENGINE_DATA, then ./data)")
    check.add_argument("--size", type=int, help="scale the images to SIZE x SIZE")
    return parser


def check(name: str, data_root: str | None, size: int | None) -> None:
    """Load a set with all its splits and print what it is."""
    name = _with_prefix(name)
    check_name(name)
    from engine.data.loading import load

    for key, value in describe(load(name, data_root, size)):
        print(f"{key:10} {value}")


def _with_prefix(name: str) -> str:
    """Turn a bare path into ``npz:PATH`` or ``folder:PATH``; known names win over files of the same name."""
    if name in SETS or name.startswith(tuple(PREFIXES)):
        return name
    if name.endswith(".npz"):
        return f"npz:{name}"
    return f"folder:{name}" if Path(name).is_dir() or "/" in name else name


def describe(data: ImageSet) -> list[tuple[str, str]]:
    """Return the rows that ``check`` prints."""
    count, channels, height, width = data.images.shape
    rows = [
        ("set", data.name),
        ("layout", data.origin),
        ("images", f"{count} of {channels}x{height}x{width} uint8, {data.images.numel() / 1e6:.1f} MB"),
        ("classes", f"{len(data.class_names)}, {', '.join(data.class_names[:3])}{', ...' if len(data.class_names) > 3 else ''}"),
        ("split by", "sample" if data.sample_splits else "class"),
    ]
    for split in SPLITS:
        if data.class_splits.get(split):
            members = data.members(split)
            low, high = int(members.counts.min()), int(members.counts.max())
            each = str(low) if low == high else f"{low} to {high}"
            rows.append(
                (split, f"{len(members.classes)} classes, {len(members.order)} images, {each} a class{_absent(data, split)}")
            )
    for name, values in (("mean", data.mean), ("std", data.std)):
        rows.append((name, " ".join(f"{value:.4f}" for value in values)))
    rows.append(("sha256", data.content_hash()))
    return rows


def _absent(data: ImageSet, split: str) -> str:
    """Say how many classes of the published split are not there."""
    from engine.data.class_splits import published_split

    published = published_split(data.name)
    absent = len(set(published[split]).difference(data.class_names)) if published else 0
    return f" ({absent} published classes are not there)" if absent else ""


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
