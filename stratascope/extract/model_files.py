"""Files of a model: the built-in one, a folder, or the Hub; refusal of partial and damaged weights. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from stratascope.errors import InvalidInputError, MissingExtraError
from stratascope.extract.file_digests import file_digests, settings_files, shard_names, weight_files

BUILT_IN = "demo"
"""Name of the built-in model."""

_SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
_EXTRACT_EXTRA = "pip install 'stratascope[extract]', or in a checkout pip install '.[extract]'"


def missing_extra(what: str, error: ImportError) -> MissingExtraError:
    """The error with the pip command that makes `what` possible."""
    return MissingExtraError(f"{what} needs packages that are not installed (no module {error.name!r}): run {_EXTRACT_EXTRA}")


@dataclass(frozen=True)
class ModelSource:
    """A model: its name, the folder of its files, and its commit hash if it came from the Hub."""

    name: str
    folder: Path
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return self._json("config.json")

    @cached_property
    def processor_config(self) -> dict[str, Any]:
        """Settings of the image processor, from `processor_config.json` or `preprocessor_config.json`."""
        if (self.folder / "processor_config.json").exists():
            nested = self._json("processor_config.json").get("image_processor")
            if isinstance(nested, dict):
                return nested
        return self._json("preprocessor_config.json")

    @cached_property
    def processor_settings(self) -> dict[str, Any]:
        """`processor_config.json` without its image processor; empty if there is no such file."""
        return self._json("processor_config.json") if (self.folder / "processor_config.json").exists() else {}

    @cached_property
    def tokenizer_settings(self) -> dict[str, Any]:
        """`tokenizer_config.json`; empty if there is none."""
        return self._json("tokenizer_config.json") if (self.folder / "tokenizer_config.json").exists() else {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The fast tokenizer; InvalidInputError if its file cannot be read."""
        try:
            return Tokenizer.from_file(str(self.tokenizer_file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise InvalidInputError(f"{self.name}: expected a readable {self.tokenizer_file}, found: {error}") from error

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens of the tokenizer."""
        return int(self.tokenizer.get_vocab_size())

    def token_text(self, number: int) -> str:
        """Text of a token id; InvalidInputError if the tokenizer does not have it."""
        text = self.tokenizer.id_to_token(number)
        if text is None:
            raise InvalidInputError(f"{self.name}: expected a token {number} in its tokenizer, as its config.json says, found none")
        return text

    def named_token(self, role: str, usual: str | None = None) -> str | None:
        """Text of a special token such as `bos_token`, from the tokenizer's settings."""
        extra = self.tokenizer_settings.get("extra_special_tokens")
        for settings in (self.tokenizer_settings, extra if isinstance(extra, dict) else {}):
            found = settings.get(role)
            found = found.get("content") if isinstance(found, dict) else found
            if isinstance(found, str):
                return found
        return usual

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template in Jinja, from any of the files that may hold it; None if there is none."""
        plain = self.folder / "chat_template.jinja"
        if plain.exists():
            return plain.read_text(encoding="utf-8")
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            template = self._json(name).get("chat_template") if (self.folder / name).exists() else None
            if isinstance(template, list):  # several, by name
                template = {named.get("name"): named.get("template") for named in template}.get("default")
            if isinstance(template, str):
                return template
        return None

    @property
    def tokenizer_file(self) -> Path:
        """Path of `tokenizer.json`; InvalidInputError if there is none."""
        path = self.folder / "tokenizer.json"
        if not path.exists():
            raise InvalidInputError(f"{self.name}: expected a fast tokenizer (tokenizer.json) in {self.folder}, found none")
        return path

    @property
    def weights_here(self) -> bool:
        """Whether all weight files are in the folder; those of a Hub model may not be downloaded yet."""
        for name in ("model.safetensors", "pytorch_model.bin"):  # in the order in which transformers looks for them
            if (self.folder / name).exists():
                return True
            if (index := self.folder / f"{name}.index.json").exists():
                return all((self.folder / shard).exists() for shard in shard_names(index))
        return any(self.folder.glob("*.safetensors"))

    def digests(self, *, weights: bool = True, progress: bool = False) -> dict[str, str]:
        """SHA-256 of every file that can change a number, by name, and of the chat template.

        For a Hub model only tokenizer and chat template: its commit pins the rest.

        Parameters
        ----------
        weights
            Whether the weight files are used; random initial weights follow from the configuration.
        progress
            Show a progress bar: hashing many gigabytes takes minutes the first time.

        Raises
        ------
        InvalidInputError
            If a file cannot be read, or changes while it is read.
        """
        files = [self.tokenizer_file]
        if self.revision is None:
            files = [*settings_files(self.folder), *(weight_files(self.folder) if weights else [])]
        found = file_digests(files, self.folder, progress=progress)
        if self.chat_template is not None:
            found["chat_template"] = hashlib.sha256(self.chat_template.encode()).hexdigest()
        return found

    def _json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"{self.name}: expected a readable {name} in {self.folder}, found: {error}") from error
        if not isinstance(value, dict):
            raise InvalidInputError(f"{self.name}: expected a JSON object in {self.folder / name}, found {type(value).__name__}")
        return value


def resolve_model(name: str, *, revision: str | None = None, weights: bool = False) -> ModelSource:
    """Find a model's files: `demo` (built in), a folder, or a Hub id such as `Qwen/Qwen2.5-VL-7B-Instruct`.

    Of a Hub model only configuration, tokenizer and template are downloaded, unless `weights` is true. `revision` is resolved to a commit
    hash, which is part of a store's provenance.

    Raises
    ------
    InvalidInputError
        If there is no such folder or Hub model, or `revision` is given for a model that is not on the Hub.
    MissingExtraError
        If it is a Hub model and the `extract` extra is not installed.
    """
    local = name == BUILT_IN or Path(name).expanduser().is_dir()
    if local and revision is not None:
        what = "the built-in model" if name == BUILT_IN else f"the folder {name}"
        raise InvalidInputError(
            f"expected `revision` with a model of the Hub, found {revision!r} with {what}, which has no revisions; leave `revision` out"
        )
    if name == BUILT_IN:
        return ModelSource(name, Path(str(resources.files("stratascope") / "demo" / "model")))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelSource(name, folder.resolve())
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise InvalidInputError(f"expected 'demo', a folder or a Hub id OWNER/NAME for the model, found {name!r}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise missing_extra(f"fetching {name} from the Hub", error) from error
    patterns = [*_SMALL_FILES, *(["*.safetensors"] if weights else [])]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InvalidInputError(f"{name}: {_not_given(name, revision, error)}") from error
    return ModelSource(name, path, revision=path.name)


def _not_given(name: str, revision: str | None, error: Exception) -> str:
    """Why the download failed, and what to do."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "expected a model without access restrictions, found a gated one; accept its terms on huggingface.co and run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "expected a folder of that name or a model on the Hub, found neither; check the name (private ones need `hf auth login`)"
    if isinstance(error, RevisionNotFoundError):
        return f"expected a branch, tag or commit hash of the model for `revision`, found no {revision!r}"
    first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
    return (
        f"expected a folder of that name, files kept in {HF_HUB_CACHE}, or the Hub to fetch them from, found none of these ({first}); "
        f"where there is a network run `hf download {name}`, copy the folder that it names to this machine, and set `model` to that folder"
    )


QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
"""Fields of config.json that describe quantisation."""
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
"""Types of safetensors without quantisation."""
_PARTS = ("text_config", "vision_config")


def quantization(source: ModelSource) -> str | None:
    """Quantisation in config.json, such as `gptq, 4 bits`; None if there is none."""
    for part in (source.config, *(source.config.get(name) for name in _PARTS)):
        for field in QUANTIZATION_FIELDS if isinstance(part, Mapping) else ():
            if found := part.get(field):  # type: ignore[union-attr]
                return _described(found)
    return None


QUANTIZE = ("4bit", "8bit")
"""Forms into which weights can be quantised on loading, by bitsandbytes."""
METHODS = ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors")
"""Methods of checkpoints that are quantised already: modules that transformers loads and whose weights can be read."""


def on_loading(bits: str) -> str:
    """Quantisation on loading, as provenance names it.

    Examples
    --------
    >>> on_loading("4bit")
    'bitsandbytes, 4 bits (nf4), on loading'
    """
    return f"bitsandbytes, {bits.removesuffix('bit')} bits{' (nf4)' if bits == '4bit' else ''}, on loading"


def check_weight_form(source: ModelSource, *, quantize: str | None = None, untrained: bool = False) -> None:
    """Refuse adapters, and quantised weights whose numbers would be another thing than asked for.

    Parameters
    ----------
    source
        The model.
    quantize
        How the weights are quantised on loading; None: as they are.
    untrained
        Whether random initial weights replace those of the files.

    Raises
    ------
    InvalidInputError
        If the weights are quantised by an unknown method, quantised twice, drawn anew in a quantised form, or the folder holds an adapter.
    """
    if method := quantization(source):
        where = f"found quantization_config in config.json ({method})"
        if method.partition(",")[0] not in METHODS:
            raise InvalidInputError(
                f"{source.name}: expected weights that are not quantised, or by {', '.join(METHODS)}, {where}; use the float16 or bfloat16 "
                "files of the model"
            )
        if quantize is not None or untrained:
            asked = "`quantize`" if quantize is not None else "`untrained`"
            raise InvalidInputError(f"{source.name}: expected weights that are not quantised for {asked}, {where}; leave {asked} out")
    if (source.folder / "adapter_config.json").exists():
        raise InvalidInputError(
            f"{source.name}: expected the weights of a complete model, found an adapter (adapter_config.json) in {source.folder}; merge it "
            "into the model with peft's merge_and_unload, save that with save_pretrained, and use the new folder"
        )


def check_weight_files(source: ModelSource) -> None:
    """Refuse damaged or missing weight files, and quantised ones that config.json does not describe; reads only their headers.

    Raises
    ------
    InvalidInputError
        Naming the file.
    """
    from safetensors import SafetensorError, safe_open

    for index in sorted(source.folder.glob("*.safetensors.index.json")):
        for name in shard_names(index):
            if not (source.folder / name).is_file():
                raise InvalidInputError(
                    f"{source.name}: expected the files that {index.name} names in {source.folder}, found no {name}; download it"
                )
    for path in sorted(source.folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                kinds = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidInputError(
                f"{path}: expected a complete safetensors file, found {path.stat().st_size:,} bytes that cannot be read "
                f"({error}): damaged or incomplete; download it again"
            ) from error
        if not (source.folder / "config.json").exists() or quantization(source) is None:
            _check_types(path, kinds)


def _check_types(path: Path, kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if kind not in PLAIN_TYPES and "weight" in name.rpartition(".")[2]:
            raise InvalidInputError(
                f"{path}: expected weights of type {', '.join(PLAIN_TYPES)}, found {name} of type {kind}, and no quantization_config in "
                "config.json; use files of a complete model"
            )


def _described(found: Any) -> str:
    if not isinstance(found, Mapping):
        return str(found)
    method = str(found.get("quant_method") or found.get("quant_type") or "a method that is not named")
    if found.get("load_in_8bit") or found.get("_load_in_8bit"):
        return f"{method}, 8 bits"
    if found.get("load_in_4bit") or found.get("_load_in_4bit"):
        return f"{method}, 4 bits"
    return f"{method}, {found['bits']} bits" if found.get("bits") else method
