"""Configuration: layers, TOML round trip, and one line for everything that cannot be used."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.methods.options import INVOCATION, CellOptions, MetaNTKNASOptions, RunOptions, SearchOptions, parse_bytes
from engine.methods.registry import METHODS, Method, find_method, register_method
from engine.runs.config import choose, free_directory, resolve, to_toml
from engine.runs.options_parser import OptionType, option_text, option_types

INFINITY = float("inf")


def refused(argv: list[str]) -> str:
    def command() -> None:
        method, words = choose(argv)
        resolve(method, words)

    with pytest.raises(ConfigurationError) as caught:
        command()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults() -> None:
    method, words = choose([])
    assert method.name == "metantk-nas"
    assert resolve(method, words) == MetaNTKNASOptions()


def test_layers(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('preset = "paper-8"\nshots = 5\ntime = 3\nfaithful = true\n')
    options = resolve("metantk-nas", ["--config", str(file), "--shots", "2", "--faithful=false"])
    assert isinstance(options, MetaNTKNASOptions)
    assert (options.ways, options.cells, options.time, options.shots, options.faithful) == (5, 8, 3.0, 2, False)


def test_presets_are_the_published_settings() -> None:
    five, eight = (resolve("metantk-nas", ["--preset", name]) for name in ("paper-5", "paper-8"))
    assert isinstance(five, MetaNTKNASOptions)
    assert isinstance(eight, MetaNTKNASOptions)
    assert (five.data, five.size, five.channels, five.tasks) == ("miniimagenet", 32, 48, 3)
    assert (five.region_images, five.region_batches) == (1000, 3)
    assert (five.cells, five.kernel, five.time, five.reg) == (5, "maml", INFINITY, 1e-3)
    assert (eight.cells, eight.kernel, eight.time, eight.reg) == (8, "anil", 1.0, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_of_a_method_fits_it(method: str) -> None:
    for preset in METHODS[method].options.presets:
        assert resolve(method, ["--preset", preset]).preset == preset


def test_preset_keys_are_options() -> None:
    known = {field.name for method in METHODS.values() for field in dataclasses.fields(method.options)}
    assert all(set(values) <= known for method in METHODS.values() for values in method.options.presets.values())


def test_only_own_options() -> None:
    assert "--kernel" in refused(["linear-regions", "--kernel", "maml"])
    assert "--region-images" in refused(["metantk-only", "--region-images", "3"])


def test_resolution() -> None:
    assert [CellOptions().resolution(native) for native in (8, 28, 84)] == [8, 28, 32]
    assert CellOptions(size=14).resolution(28) == 14


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["te-nsa"], "did you mean 'te-nas'?"),
        (["nowhere.at.all:METHOD"], "cannot import 'nowhere.at.all:METHOD'"),
        (["engine.errors:EngineError"], "not an engine.methods.registry.Method"),
        (["--dta", "x"], "unknown option --dta; did you mean '--data'?"),
        (["--zzz"], "see engine search metantk-nas --help"),
        (["--seed", "1", "te-nas"], "--seed: expected one value"),
        (["--seed"], "--seed: expected one value (an integer), got none"),
        (["--seed", "1.5"], "--seed: expected an integer, got '1.5'"),
        (["--seed", "-1"], "--seed must be in"),
        (["--width", "x"], "expected an integer or none"),
        (["--width", "0"], "--width must be at least 1"),
        (["--kernel", "mmal"], "expected maml or anil"),
        (["--device", "gpu"], "expected auto or cpu or cuda"),
        (["--faithful", "maybe"], "expected true or false"),
        (["--resume=1"], "unexpected '1'|--resume: expected true or false"),
        (["--preset", "papr-5"], "did you mean 'paper-5'?"),
        (["--channels", "20"], "GroupNorm(16) cannot divide 20"),
        (["--ways", "1"], "--ways must be at least 2"),
        (["--tasks", "0"], "--tasks must be at least 1"),
        (["--reg", "nan"], "--reg must be at least 0"),
        (["--reg", "inf"], "--reg must be finite"),
        (["--time=-inf"], "--time must be at least 0"),
        (["--memory", "4"], "'4' is not a size"),
        (["--data-root", "\udcff"], "--data-root: expected text or none"),
        (["--config", "not/there.toml"], "not/there.toml: cannot read the configuration (No such file or directory)"),
        (["--resume", "--out", "not/there"], "not/there holds no run to resume"),
        (["--out", ""], "--out is empty"),
        (["--config", ""], "--config is empty"),
        (["--cells", "100000"], "--cells must be at most 1000"),
        (["--channels", "1600000"], "--channels must be at most 65536"),
        (["--threads", "100000"], "--threads must be at most 1024"),
        (["--", "--seed", "1"], "'--' has no meaning here"),
    ],
)
def test_bad_command_lines(argv: list[str], said: str) -> None:
    message = refused(argv)
    assert any(part in message for part in said.split("|"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = ", "not a TOML file"),
        ("\xff", "not a TOML file"),
        ("sed = 1", "unknown key 'sed'; did you mean 'seed'?"),
        ("seed = 1.0", "seed: expected an integer, got 1.0"),
        ("seed = true", "seed: expected an integer, got True"),
        ('time = "inf"', "time: expected a number, got 'inf'"),
        ("data = 3", "data: expected text, got 3"),
        ("resume = 1", "resume: expected true or false"),
        ('kernel = "mmal"', "kernel: expected maml or anil"),
        ("[seed]\na = 1", "seed: expected an integer"),
        ('out = "a\\u0000b"', "out: expected text or none"),
        ("seed = " + "9" * 5000, "not a TOML file"),
        ('config = "other.toml"', "unknown key 'config'"),
        ('method = "te-nsa"', "did you mean 'te-nas'?"),
        ("method = 3", "method: expected text"),
        ("a = " + "[" * 100_000, "not a TOML file"),
        ("# " + "x" * 1_000_000, "larger than a configuration file can be"),
    ],
)
def test_bad_files(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(text.encode("latin-1"))
    message = refused(["--config", str(file)])
    assert said in message
    assert said.startswith("did you mean") or str(file) in message


def test_file_of_another_method(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('method = "te-nas"\nbatch = 12\n')
    method, words = choose(["--config", str(file)])
    assert method.name == "te-nas"
    assert vars(resolve(method, words))["batch"] == 12
    assert "for the method 'te-nas'" in refused(["random", "--config", str(file)])


def test_none_over_a_preset_survives_the_round_trip(tmp_path: Path) -> None:
    options = resolve("random", ["--preset", "small", "--size", "none"])
    text = to_toml("random", options)
    assert 'size = "none"' in text
    (tmp_path / "config.toml").write_text(text)
    again = resolve("random", ["--config", str(tmp_path / "config.toml")])
    assert again == dataclasses.replace(options, config=str(tmp_path / "config.toml"))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).filter(lambda text: text != "none")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "data": TEXT,
    "data_root": st.none() | TEXT,
    "seed": st.integers(0, 2**63 - 1),
    "channels": st.integers(1, 50).map(lambda count: 16 * count),
    "memory": st.builds("{}{}".format, st.integers(1, 10**6), st.sampled_from(["B", "kB", "MB", "GB", "MiB", "TiB"])),
    "space": TEXT,
    "time": st.floats(0, allow_nan=False),
    "reg": st.floats(0, allow_nan=False, allow_infinity=False),
    "ways": st.integers(2, 100),
    "batch": st.integers(2, 100),
}


def of_type(kind: OptionType) -> st.SearchStrategy[Any]:
    by_type = {bool: st.booleans(), int: st.integers(0, 10**6), float: st.floats(0, 10), str: TEXT}
    plain = st.sampled_from(kind.choices) if kind.choices else by_type[kind.base]
    return st.none() | plain if kind.optional else plain


@st.composite
def resolved(draw: st.DrawFn) -> tuple[str, RunOptions]:
    """A method and a preset of it with some options changed, each to a value that the method can use beside the others."""
    name = draw(st.sampled_from(sorted(METHODS)))
    kinds = option_types(METHODS[name].options)
    options = resolve(name, ["--preset", draw(st.sampled_from(sorted(METHODS[name].options.presets)))])
    for key in draw(st.lists(st.sampled_from(sorted(kinds.keys() - INVOCATION - {"preset"})), unique=True, max_size=12)):
        values = VALUES[key] if key in VALUES and not kinds[key].choices else of_type(kinds[key])
        changed = dataclasses.replace(options, **{key: draw(values)})
        with contextlib.suppress(ConfigurationError):
            changed.validate()
            options = changed
    return name, options


@settings(max_examples=60, deadline=None)
@given(resolved())
def test_round_trip(case: tuple[str, RunOptions]) -> None:
    name, options = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(to_toml(name, options).encode())
        method, words = choose(["--config", str(path)])
        assert method.name == name
        assert resolve(method, words) == dataclasses.replace(options, config=str(path))


@settings(max_examples=30, deadline=None)
@given(resolved())
def test_command_line_says_the_same(case: tuple[str, RunOptions]) -> None:
    name, options = case
    words = [f"--{key.replace('_', '-')}={option_text(value)}" for key, value in vars(options).items() if key not in INVOCATION]
    assert resolve(name, words) == options


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{0,4} ?[a-zA-Z]{0,3}", fullmatch=True))
def test_parse_bytes_never_fails_otherwise(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert parse_bytes(text) > 0


@pytest.mark.parametrize(
    ("text", "count"), [("1B", 1), ("500MB", 500_000_000), ("4 gb", 4_000_000_000), ("1.5GiB", 3 * 2**29), ("2KiB", 2048)]
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_free_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    method, options = find_method("random"), CellOptions(data="npz:/a/b c.npz", seed=7)
    first = free_directory(method, options)
    assert str(first) == "runs/random-npz-a-b-c.npz-7"
    first.mkdir(parents=True)
    assert free_directory(method, options).name == "random-npz-a-b-c.npz-7-2"


def test_registered_names_are_unique() -> None:
    record = register_method("mine", SearchOptions, "engine.errors:EngineError", "one of my own")
    try:
        assert find_method("mine") is record
        with pytest.raises(ConfigurationError, match="exists already"):
            register_method("mine", SearchOptions, "x:y", "again")
    finally:
        del METHODS["mine"]


def test_method_without_a_plan() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot import 'engine\.errors:plan'"):
        Method("mine", SearchOptions, "engine.errors:EngineError", "").load_plan()


def test_option_of_an_unsupported_type() -> None:
    with pytest.raises(TypeError, match="an option cannot be of type"):
        OptionType.of(list[int])


@pytest.mark.parametrize("line", ['method = "os.path:join"', 'space = "os.path:join"'])
def test_a_file_may_not_import_code(tmp_path, line):
    path = tmp_path / "hostile.toml"
    path.write_text(line)
    with pytest.raises(ConfigurationError, match="may not import code"):
        resolve(*choose(["--config", str(path)]))
