"""Config files: the shipped ones by name, and reading one as a Sweep."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dsabench.errors import SpecError
from dsabench.spec import ladder as ladders
from dsabench.spec import yaml_file
from dsabench.spec.attention import BUILT_IN, AttentionSpec, kind_of
from dsabench.spec.messages import near_miss
from dsabench.spec.sweep import Sweep

DEFAULT_CONFIG = "seed"

_PARTS = ("base", "axes", "verdict", "ladder", "tune")
"""The fields of a config file."""


def load_sweep(name_or_path: str = DEFAULT_CONFIG) -> Sweep:
    """Read a sweep: a shipped config by name (`seed`, `quick`) or a YAML file by path. Raises SpecError."""
    path = config_path(name_or_path)
    content, lines = yaml_file.read(path)
    origins = {key: f"{path}:{line}: " for key, line in lines.items()}
    if not isinstance(content, dict):
        raise SpecError(f"{path} must hold a mapping with `base` and `axes`")
    for key in content:
        if key not in _PARTS:
            raise SpecError(f"{origins[key]}unknown field {key}{near_miss(key, list(_PARTS))}")
    base, axes, verdict, ladder, tune = ({} if content.get(key) is None else content[key] for key in _PARTS)
    for key, part in zip(_PARTS, (base, axes, verdict, ladder, tune), strict=True):
        if not isinstance(part, dict):
            raise SpecError(f"{origins[key]}{key} must be a mapping")
    shipped = path.resolve() in [one.resolve() for one in shipped_configs().values()]
    sweep = Sweep(base, {}, path.stem, path=path, is_shipped=shipped)
    sweep.set_verdict(verdict, lambda field: origins.get(field, ""))
    sweep.set_tune(tune, lambda field: origins.get(field, ""))
    of_runs = {key: origin for key, origin in origins.items() if "." in key and not key.startswith("tune.")}
    sweep.origins = {key.partition(".")[2]: origin for key, origin in of_runs.items()}
    sweep.origins |= {key: origin for key, origin in origins.items() if key.startswith("ladder.")}
    if isinstance(base.get("plugins"), list):  # a plugin lies beside its config, or else where the user stands
        base["plugins"] = [_beside(path, str(plugin), origins.get("base.plugins", "")) for plugin in base["plugins"]]
    sweep.load_plugins()
    for axis, values in axes.items():
        before = set(sweep.axes)
        sweep.set_axis(axis, values, origins[f"axes.{axis}"])
        if lost := before - set(sweep.axes):
            raise SpecError(f"{origins[f'axes.{axis}']}axes.{axis} and axes.{lost.pop()} replace each other; keep one")
    attention = base.get("attention", {})
    sweep.named_kinds = [kind_of(attention)] if isinstance(attention, dict) else []
    sweep.named_kinds += sweep.axes.get("attention.kind", [])
    sweep.ladder = ladders.read(ladder, origins)
    for changes in sweep.ladder.values():
        kinds = changes.get("attention.kind", [])
        sweep.named_kinds += kinds if isinstance(kinds, list) else [kinds]
    for _ in sweep.climb():  # raises where a rung changes a field that there is not
        pass
    return sweep


def config_path(name_or_path: str) -> Path:
    """The file of a shipped config, or the path itself. Raises SpecError for a name of none."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        return path
    shipped = shipped_configs()
    if name_or_path not in shipped:
        raise SpecError(
            f"no config named {name_or_path!r}{near_miss(name_or_path, sorted(shipped))} "
            "(`dsabench configs` lists them; or give the path of a .yaml file)"
        )
    return shipped[name_or_path]


def _beside(config: Path, plugin: str, origin: str) -> str:
    """The path of a plugin that a config file names. Raises SpecError when there is no such file."""
    from dsabench.attention.plugins import check_plugin_allowed

    check_plugin_allowed(plugin, origin)
    try:
        if (beside := config.parent / plugin).is_file():
            return str(beside)
        found = Path(plugin).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a null byte, a name too long, ~ of nobody
        found = False
    if not found:
        raise SpecError(f"{origin}plugins: {plugin} is not a file beside this config, nor one seen from {Path.cwd()}")
    return plugin


def shipped_configs() -> dict[str, Path]:
    """The configs that come with dsabench, by name; from the wheel, or from configs/ in a checkout."""
    package = Path(str(resources.files("dsabench")))
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise SpecError("this installation of dsabench has lost its configs folder; reinstall it")


def attention_settings(config: str | None = None) -> dict[str, type[AttentionSpec]]:
    """The settings class of each built-in attention; and of those that the plugins of `config` register, last."""
    found = dict(BUILT_IN)
    if config is not None:
        load_sweep(config)
        from dsabench.attention.registry import registered  # loads torch, as a plugin does

        found |= {kind: variant.spec_class for kind, variant in registered().items() if kind not in found}
    return found


def about(config: Path) -> str:
    """What a config is for, in one line: its file's first line, a comment. Empty where that is none."""
    with config.open(encoding="utf-8") as lines:
        first = lines.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""
