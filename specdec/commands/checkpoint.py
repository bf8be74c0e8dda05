"""Checkpoints on disk: what they are, whether specdec can run them, and loading them.

Only what lies in the folder is read: no hub, no code from a checkpoint, no pickled weights. A model
is first built without weights, so that what cannot run is refused before gigabytes are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from specdec.commands.errors import UserError, reason
from specdec.files import read_json, refuse_endless

if TYPE_CHECKING:
    from transformers import (
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

Kind = Literal["image-text", "text"]

_LOCAL = {"local_files_only": True, "trust_remote_code": False}

DEMO = "demo"


class Checkpoint(NamedTuple):
    """A checkpoint that is there, before its weights are loaded.

    Attributes:
        folder: where it lies.
        config: its configuration.
        kind: whether the model takes images.
    """

    folder: Path
    config: PretrainedConfig
    kind: Kind


class Location(NamedTuple):
    """Where a model lies, and which drafter serves it unless another is asked for."""

    folder: Path
    drafter: str


def locate(name: str) -> Location:
    """What `--model` means: a folder, or the model that comes with specdec.

    Raises:
        UserError: that model did not come with this copy.
    """
    if name != DEMO:
        return Location(Path(name), "ngram")
    from specdec import demo

    folder = demo.ASSETS / "lvlm"
    if not folder.is_dir():
        raise UserError(
            f"this copy of specdec has no demonstration model ({folder} is missing); "
            "for a folder of that name, write ./demo"
        )
    return Location(folder, str(demo.ASSETS / "drafter"))


def quieten() -> None:
    """Turn off transformers' progress bars and advice: the terminal is for answers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read what a folder holds.

    Raises:
        UserError: it holds no checkpoint that transformers knows without code of its own.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    stored = stored_config(folder)
    # Here and below: broken files make loaders raise whatever they stumble over.
    try:
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
    except Exception as error:
        if "auto_map" in stored:
            raise UserError(
                f"{folder} is of model type {stored.get('model_type')!r}, which needs code of its "
                "own; specdec runs models that transformers itself contains, and no others"
            ) from error
        raise UserError(f"{folder}: its config.json cannot be used: {reason(error)}") from error
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return Checkpoint(folder, config, "image-text")
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return Checkpoint(folder, config, "text")
    raise UserError(
        f"{folder} is of model type {config.model_type!r}, which answers neither about images nor "
        "with text; specdec runs image-text-to-text and causal language models"
    )


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model without weights: instant, whatever its size.

    Raises:
        UserError: transformers cannot build it.
    """
    import torch

    try:
        with torch.device("meta"):
            model: PreTrainedModel = _auto_model(checkpoint.kind).from_config(checkpoint.config)
    except Exception as error:
        raise UserError(
            f"{checkpoint.folder}: transformers cannot build this model: {reason(error)}"
        ) from error
    return model


def problems(model: PreTrainedModel) -> list[str]:
    """Why specdec cannot run this model, with or without weights; empty if it can."""
    from specdec.runtime.seam import text_attention_configs
    from specdec.verifiers.spec import unsupported

    try:
        found = unsupported(model)
    except AttributeError as error:  # a config unlike that of any language model
        return [f"its text tower cannot be made out: {reason(error)}"]
    if not found:
        try:
            text_attention_configs(model)
        except ValueError as error:
            found.append(reason(error))
    return found


def weight_problems(folder: Path) -> list[str]:
    """What is wrong with the weight files of a folder, as far as names tell."""
    if (folder / "model.safetensors").is_file():
        return []
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(read_json(index)["weight_map"].values()))
            outside = [shard for shard in shards if Path(shard).name != shard]
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            return [f"{index.name} cannot be read: {reason(error)}"]
        if outside:
            return [f"{index.name} points outside of its folder: {outside[0]}"]
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        return [f"{len(missing)} of {len(shards)} shards missing: {missing[0]}"] if missing else []
    pickled = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt*"))]
    if pickled:
        return [
            f"its weights are pickled ({pickled[0]}), which loading could execute; specdec reads "
            "safetensors only: load them once with a transformers you trust and save_pretrained"
        ]
    return ["it has no weights: no model.safetensors, no model.safetensors.index.json"]


def load_model(checkpoint: Checkpoint, dtype: Any) -> PreTrainedModel:
    """The model with its weights, in inference mode, on the first CUDA device if there is one.

    Raises:
        UserError: specdec cannot run it, or its weights are missing or broken.
    """
    import torch

    from specdec.drafters.checkpoint_files import refuse_hollow

    folder = checkpoint.folder
    if found := problems(bare := skeleton(checkpoint)):
        raise UserError(f"{folder}: specdec cannot run {type(bare).__name__}: {'; '.join(found)}")
    if found := weight_problems(folder):
        raise UserError(f"{folder}: {'; '.join(found)}")
    try:
        refuse_hollow(str(folder), bare)
    except (OSError, ValueError) as error:
        raise UserError(reason(error)) from error
    try:
        model, info = _auto_model(checkpoint.kind).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    except Exception as error:
        raise UserError(f"{folder}: its weights cannot be loaded: {reason(error)}") from error
    # transformers fills what is missing with random numbers and goes on.
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{folder}: {len(missing)} weights of {type(model).__name__} are missing, "
            f"{missing[0]} for instance; is the checkpoint complete, and of this class?"
        )
    loaded: PreTrainedModel = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def load_processor(checkpoint: Checkpoint) -> ProcessorMixin | PreTrainedTokenizerBase:
    """The processor of an image-text model, the tokenizer of a text model.

    Raises:
        UserError: there is none, or a package that it needs is not installed.
    """
    from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin

    auto: Any = AutoProcessor if checkpoint.kind == "image-text" else AutoTokenizer
    wanted = "processor" if checkpoint.kind == "image-text" else "tokenizer"
    try:
        processor = auto.from_pretrained(checkpoint.folder, **_LOCAL)
    except Exception as error:
        raise UserError(
            f"{checkpoint.folder}: its {wanted} cannot be loaded: {reason(error)}"
        ) from error
    if checkpoint.kind == "image-text" and not isinstance(processor, ProcessorMixin):
        raise UserError(
            f"{checkpoint.folder} has a tokenizer but no processor for images; copy "
            "processor_config.json and preprocessor_config.json from where the model came from"
        )
    loaded: ProcessorMixin | PreTrainedTokenizerBase = processor
    return loaded


def _auto_model(kind: Kind) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if kind == "image-text" else AutoModelForCausalLM


def stored_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json.

    Raises:
        UserError: the folder, or a readable config.json in it, is missing.
    """
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}; a checkpoint is a folder with a config.json")
    path = folder / "config.json"
    try:
        stored = read_json(path)
        refuse_endless(path, stored)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no config.json, so no transformers model") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise UserError(reason(error)) from error
    return stored
