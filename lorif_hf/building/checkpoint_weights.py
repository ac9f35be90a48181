"""The weights of checkpoints in a model that is there already, whose own come back afterwards."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..layers.modules import has_adapter, unwrap
from ..storage.files import tensor_bytes
from ..storage.layout import inside
from ..storage.system_errors import system_errors
from .checkpoints import ADAPTER, SHARDED, WHOLE


_OTHERWISE = (
    "Pass a function instead of the model, which loads a checkpoint's folder, such as "
    "AutoModelForCausalLM.from_pretrained."
)


class CheckpointWeights:
    """Puts the weights of checkpoints into a model, one after another, and at the end its own back, to the last bit.

    One model is held in memory: its own weights are kept in a temporary file meanwhile, and a checkpoint's are copied
    in tensor by tensor. Parameters stay the same objects, so an optimizer or a tied weight notices nothing.

    Args:
        model (`nn.Module`): a transformers model, or one with a PEFT adapter, into which adapter checkpoints go.

    Example:

    ```python
    >>> with CheckpointWeights(model) as weights:
    ...     weights.load(Path("out/checkpoint-100"))
    ```
    """

    def __init__(self, model: nn.Module):
        self.model: Any = unwrap(model)
        self._kept: dict[int, tuple[Tensor, int, int]] = {}  # by address: the tensor, and where in the file it is
        self._file: BinaryIO | None = None

    def __enter__(self) -> "CheckpointWeights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for tensor, begin, size in self._kept.values():
                if self._file is not None and size:
                    self._file.seek(begin)
                    content = bytearray(self._file.read(size))
                    _fill(tensor, torch.frombuffer(content, dtype=tensor.dtype).view(tensor.shape))
        finally:
            self._kept.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def load(self, folder: Path) -> None:
        """Put the weights of a checkpoint into the model.

        Raises:
            [`~lorif_hf.errors.CheckpointError`]: they are not those of this model; nothing was changed.
        """
        try:
            if has_adapter(self.model):
                self._load_adapter(folder)
            else:
                self._load_whole(folder)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"The weights of {folder} cannot be read ({error}).") from error

    def _load_whole(self, folder: Path) -> None:
        own = self.model.state_dict()
        shapes = {name: shape for file in _files(folder) for name, shape in _shapes(file)}
        loaded = {_place(own[name]) for name in shapes if name in own}
        missing = [name for name, tensor in own.items() if name not in shapes and _place(tensor) not in loaded]
        self._check(folder, {name: tensor.shape for name, tensor in own.items()}, shapes, missing)
        self._keep({name: own[name] for name in shapes})
        for file in _files(folder):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    _fill(own[name], opened.get_tensor(name))

    def _load_adapter(self, folder: Path) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        active = getattr(self.model, "active_adapters", ["default"])
        adapter = next(iter(active() if callable(active) else active))
        file = next((path for path in (folder / adapter / ADAPTER, folder / ADAPTER) if path.is_file()), None)
        if file is None:
            raise CheckpointError(
                f"{folder} holds no {ADAPTER}, and the model has the adapter '{adapter}': pass the model as it was "
                "trained."
            )
        tensors = load_file(file)
        if not hasattr(self.model, "get_base_model"):  # transformers put the adapter in, and names it shorter
            tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
        own: dict[str, Tensor] = {}
        for embeddings in (False, True):  # which a file holds where they were trained or resized
            own = get_peft_model_state_dict(self.model, adapter_name=adapter, save_embedding_layers=embeddings)
            if tensors.keys() <= own.keys():
                break
        missing = [name for name in own if name not in tensors]
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._check(folder, {name: tensor.shape for name, tensor in own.items()}, shapes, missing)
        self._keep(own)
        set_peft_model_state_dict(self.model, tensors, adapter_name=adapter)

    def _check(self, folder: Path, own: Mapping[str, Any], loaded: Mapping[str, Any], missing: list[str]) -> None:
        """See that a checkpoint has the tensors of the model, and no others."""
        strange = [name for name in loaded if name not in own]
        other = [name for name in loaded if name in own and tuple(loaded[name]) != tuple(own[name])]
        for names, what in ((strange, "are not the model's"), (other, "have another shape"), (missing, "are missing")):
            if names:
                raise CheckpointError(
                    f"The weights of {folder} are not those of this {type(self.model).__name__}: {len(names)} "
                    f"tensor(s) {what}, first '{names[0]}'. {_OTHERWISE}"
                )

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what is about to be overwritten, where that was not done yet."""
        where = {_storage(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())}
        with system_errors(Path(tempfile.gettempdir())):
            if self._file is None:
                self._file = tempfile.TemporaryFile()
            for name, tensor in tensors.items():
                if tensor.device.type == "meta" or _storage(tensor) not in where:
                    raise CheckpointError(
                        f"'{name}' of the model cannot be overwritten: it is offloaded, or made anew at each use. "
                        f"{_OTHERWISE}"
                    )
                if _place(tensor) not in self._kept:
                    content = tensor_bytes(tensor.detach().cpu().contiguous())
                    begin = self._file.seek(0, 2)
                    self._file.write(content)
                    self._kept[_place(tensor)] = tensor, begin, math.prod(tensor.shape) * tensor.element_size()
            self._file.flush()


def _files(folder: Path) -> list[Path]:
    """The files of a whole model's weights."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    try:
        listed = set(json.loads((folder / SHARDED).read_bytes())["weight_map"].values())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds neither {WHOLE} nor {SHARDED}: of an adapter's checkpoint, pass the model with its "
            "adapter (a PeftModel)."
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / SHARDED} is not the index of a model's weights ({error}).") from error
    return [inside(folder, str(name)) for name in sorted(map(str, listed))]


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(file, "pt") as opened:
        for name in opened.keys():
            yield name, opened.get_slice(name).get_shape()


@torch.no_grad()
def _fill(tensor: Tensor, values: Tensor) -> None:
    tensor.detach().copy_(values)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> int:
    return tensor.data_ptr()
