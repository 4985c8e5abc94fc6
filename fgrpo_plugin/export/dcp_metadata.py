"""Torch's distributed checkpoints without their pickle's reach: the index is read with the names that it needs alone.

torch reads the file `.metadata` with a plain `pickle.load`, which runs whatever the file says. This reader is torch's
own, with Python's documented way of restricting what a pickle can name.
"""

import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_CHECKPOINT = "torch.distributed.checkpoint"
NAMES = {
    f"{_CHECKPOINT}.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "ChunkStorageMetadata"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    # Megatron puts the plans in which each rank saved beside the index.
    f"{_CHECKPOINT}.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "collections": {"OrderedDict"},
    "builtins": {"set", "frozenset", "complex"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePath", "PurePosixPath"},  # Python 3.13 writes these
}
"""Module -> names that an index may hold: data classes and values, nothing that acts."""


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"its .metadata names {module}.{name}, which no index of a checkpoint needs")
        return super().find_class(module, name)


class PlainReader(FileSystemReader):
    """torch's reader; an index that names anything beside `NAMES` is refused before it is made."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            pickle.UnpicklingError: it names something else.
            OSError: it is missing.
        """
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            found = _Index(file).load()
        if not hasattr(found, "state_dict_metadata"):  # Megatron has had a class of its own for it
            raise pickle.UnpicklingError("its .metadata is no index of a checkpoint")
        found.storage_meta = getattr(found, "storage_meta", None) or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found
