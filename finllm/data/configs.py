"""The configs of a hub dataset's clone: what the YAML before its README.md says is read together.

    configs:
    - config_name: headlines
      data_files:
      - {split: train, path: headlines/train-*.parquet}
      - {split: test, path: headlines/test-*.parquet}
    - config_name: questions
      data_dir: questions

The library datasets reads them so from the hub (`load_dataset(name, config)`), and says here which files they name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finllm.bounded import read_text
from finllm.errors import UserError, did_you_mean

CARD = "README.md"
MOST_BYTES = 1 << 24  # of a README.md
_HEADER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


def configs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of a folder by their names; none where no README.md names any. Raises `UserError` for broken YAML."""
    card = folder / CARD
    header = _HEADER.match(read_text(card, MOST_BYTES)) if card.is_file() else None
    if header is None or "configs" not in header[1]:
        return {}
    import yaml

    try:
        held = yaml.safe_load(header[1])
    except yaml.YAMLError as error:
        raise UserError(f"{card}: its header is not YAML ({' '.join(str(error).split())}); mend it") from None
    configs = held.get("configs") if isinstance(held, dict) else None
    if configs is None:
        return {}
    sound = isinstance(configs, list) and all(
        isinstance(config, dict) and isinstance(config.get("config_name"), str) for config in configs
    )
    if not sound:
        raise UserError(f"{card}: its configs are no list of which each item has a config_name; mend it")
    return {config["config_name"]: config for config in configs}


def chosen_config(configs: Mapping[str, Mapping[str, Any]], asked: str, name: str) -> str:
    """Which config is read: the one that is asked for, the only one, or the one that is said to be the default.

    "" where there are none. Raises `UserError`, with the list, where none is asked for and several are there.
    """
    if asked:
        if asked not in configs:
            known = f"; it has {', '.join(configs)}" if configs else "; it has none, so leave --dataset_config out"
            raise UserError(f"{name} has no config '{asked}'{did_you_mean(asked, configs)}{known}")
        return asked
    default = [each for each, config in configs.items() if config.get("default") or each == "default"]
    if len(configs) > 1 and len(default) != 1:
        raise UserError(
            f"{name} has {len(configs)} configs, which are not read together ({', '.join(configs)}); choose one with "
            f"--dataset_config {next(iter(configs))}"
        )
    return (default or list(configs) or [""])[0]


def files_of(folder: Path, config: Mapping[str, Any]) -> dict[Path, str]:
    """The files that a config names, resolved, each with the name of its split. Raises `UserError` for what is none."""
    from datasets.data_files import get_data_patterns, resolve_pattern, sanitize_patterns

    place, name = folder / CARD, config["config_name"]
    base = folder / str(config.get("data_dir") or "")
    try:
        named = config.get("data_files")
        patterns = sanitize_patterns(named) if named else get_data_patterns(str(base.resolve()))
        if far := [each for each in _all(patterns) if "://" in each]:
            raise UserError(
                f"{place}: the config '{name}' names {far[0]}, which is not here; fetch it, and name the file"
            )
        found = {
            Path(path).resolve(): str(split)
            for split, globs in patterns.items()
            for glob in globs
            for path in resolve_pattern(glob, str(base.resolve()))
        }
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: the files of the config '{name}' are not there ({error})") from None
    if outside := [path for path in found if not path.is_relative_to(folder.resolve())]:
        raise UserError(
            f"{place}: the config '{name}' names {outside[0]}, which lies outside the folder; move it there"
        )
    return found


def _all(patterns: Mapping[Any, list[str]]) -> list[str]:
    return [str(each) for globs in patterns.values() for each in globs]
