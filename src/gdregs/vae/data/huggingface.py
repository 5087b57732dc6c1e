"""Images in a folder that the `datasets` library has saved."""

from pathlib import Path
from typing import Any

from gdregs.vae.data.pictures import Options, Picture, bring_to_form
from gdregs.vae.errors import UserError


def is_saved(path: Path) -> bool:
    """Whether that library has saved a folder."""
    return any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))


def find_rows(path: Path, options: Options) -> dict[str, list[Picture]]:
    """The images of the splits `train` and, if there is one, `test`.

    Raises:
        UserError: If the library is missing, or there are no images.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face data set; run: pip install 'gdregs[huggingface]'"
        ) from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}).") from None
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    if "train" not in splits:
        raise UserError(
            f"{path} has the splits {', '.join(map(str, splits))}, and none named train."
        )
    return {
        name: _rows(path, name, splits[name], options)
        for name in ("train", "test")
        if name in splits
    }


def _rows(path: Path, name: str, split: Any, options: Options) -> list[Picture]:
    import datasets

    columns = [
        column for column, kind in split.features.items() if isinstance(kind, datasets.Image)
    ]
    if not columns:
        raise UserError(
            f"{path}: {name} has no column of images; it has {', '.join(split.features)}."
        )

    def read(number: int) -> Any:
        return bring_to_form(split[number][columns[0]], options)

    return [
        Picture(f"{name} {number}", lambda number=number: read(number))
        for number in range(len(split))
    ]
