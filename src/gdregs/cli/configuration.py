"""Settings from a file: `--config run.yaml` gives the defaults that other options override."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gdregs.vae.config import Config
from gdregs.vae.errors import UserError

Commands = Mapping[str, Callable[..., Any]]


def with_file(commands: Commands, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--config FILE` out of the arguments, and make its content the command's defaults.

    Args:
        commands: By name.
        arguments: Those of the command line.

    Raises:
        UserError: If the file cannot be read or has a setting that there is not.
    """
    commands = dict(commands)
    place = next(
        (i for i, one in enumerate(arguments) if one == "--config" or one[:9] == "--config="), None
    )
    if place is None:
        return commands, arguments
    option = arguments[place]
    used = 1 if "=" in option else 2
    file = option.partition("=")[2] if used == 1 else "".join(arguments[place + 1 : place + 2])
    name = arguments[0]
    if name not in ("train", "compare") or not file:
        raise UserError("--config FILE belongs to `gdregs train` and `gdregs compare`.")
    content = read_settings(Path(file))
    commands[name] = _with_defaults(commands[name], content)
    return commands, arguments[:place] + arguments[place + used :]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, or in the `config.json` of a run."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not YAML ({reason}).") from None
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content = content["config"]
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold settings, such as `epochs: 30`.")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _with_defaults(command: Callable[..., Any], content: dict[str, Any]) -> Callable[..., Any]:
    """The command, with a file's settings as its defaults."""
    signature = inspect.signature(command)
    fields = {field.name: field for field in dataclasses.fields(Config)}
    settings, others = {}, {}
    for key, value in content.items():
        if key in fields:
            settings[key] = _as_type(key, value, fields[key].default)
        elif key in signature.parameters and key != "config":
            is_path = signature.parameters[key].annotation in (Path, Path | None)
            others[key] = Path(value) if is_path and isinstance(value, str) else value
        else:
            known = ", ".join(
                [*fields, *(name for name in signature.parameters if name != "config")]
            )
            raise UserError(f"there is no setting {key.replace('_', '-')!r}; there are {known}.")
    default = dataclasses.replace(signature.parameters["config"].default, **settings)
    changed = {"config": default, **others}

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    run.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[
            parameter.replace(default=changed.get(parameter.name, parameter.default))
            for parameter in signature.parameters.values()
        ]
    )
    return run


def _as_type(key: str, value: Any, default: Any) -> Any:
    """A value of the type of the default: YAML reads `3e-4` as text."""
    kind = type(default)
    try:
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is int and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
    except (TypeError, ValueError):
        pass
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{key.replace('_', '-')} must be {kind.__name__}; got {value!r}.")
