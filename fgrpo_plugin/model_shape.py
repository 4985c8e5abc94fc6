"""The shape of a decoder-only model, from the numbers of its ``config.json``, and what follows from it: parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from fgrpo_plugin.folders import expanded

ARCHITECTURES = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")

SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe")


@dataclass(frozen=True)
class ModelShape:
    """A pre-norm transformer with grouped-query attention; dense, or with experts in every layer."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the MLP; of one expert where there are experts."""
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    gated: bool = True
    """Three MLP matrices (gate, up, down); False: two, as in GPT."""
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0
    """Width of an expert that sees every token, besides the routed ones."""

    @property
    def query(self) -> int:
        """Width of the queries of a layer."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of the keys of a layer, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def attention_matrices(self) -> int:
        """Parameters of one layer's attention matrices."""
        return self.hidden * (2 * self.query + 2 * self.key_value)

    @property
    def expert(self) -> int:
        """Parameters of one MLP, or of one expert."""
        matrices = 3 if self.gated else 2
        bias = (matrices - 1) * self.intermediate + self.hidden if self.mlp_bias else 0
        return matrices * self.hidden * self.intermediate + bias

    @property
    def dense_layer(self) -> int:
        """Parameters of one layer outside routed experts."""
        biases = self.qkv_bias * (self.query + 2 * self.key_value) + self.output_bias * self.hidden
        norms = 2 * self.hidden + self.qk_norm * 2 * self.head_dim
        if not self.experts:
            mlp = self.expert
        else:
            shared = 3 * self.hidden * self.shared_intermediate + (self.hidden if self.shared_intermediate else 0)
            mlp = self.hidden * self.experts + shared
        return self.attention_matrices + biases + norms + mlp

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.dense_layer + self.experts * self.expert

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding; of the head too, where it is untied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        return self.layers * self.layer + (1 if self.tied else 2) * self.embedding + self.hidden

    @property
    def routed(self) -> int:
        """Parameters in routed experts."""
        return self.layers * self.experts * self.expert

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets."""
        return self.parameters - self.routed + self.layers * self.experts_per_token * self.expert

    @property
    def active_matrices(self) -> int:
        """Matrix parameters of the layers that one token is multiplied with; the head is apart."""
        if not self.experts:
            mlp = (3 if self.gated else 2) * self.hidden * self.intermediate
        else:
            mlp = self.experts_per_token * 3 * self.hidden * self.intermediate
            mlp += self.hidden * self.experts + 3 * self.hidden * self.shared_intermediate
        return self.layers * (self.attention_matrices + mlp)

    def lora(self, rank: int) -> int:
        """Parameters of adapters on every matrix of the layers (``target_modules=all-linear``), without the head."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value)
        mlps = self.experts or 1
        mlp = mlps * (3 if self.gated else 2) * (self.hidden + self.intermediate)
        if self.experts:
            mlp += self.hidden + self.experts
            mlp += 3 * (self.hidden + self.shared_intermediate) if self.shared_intermediate else 0
        return rank * self.layers * (attention + mlp)


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a Hugging Face ``config.json`` describes.

    Args:
        config: its content.
        name: for messages and reports.

    Raises:
        ValueError: another architecture, or a number that is missing.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"model {name}: model_type={kind!r} is not one of {', '.join(ARCHITECTURES)}; describe it by a config.json "
            "of the nearest of these, with its numbers of layers, heads, widths and experts."
        )
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        experts = config.get("num_experts", config.get("num_local_experts", 0)) if kind in SPARSE else 0
        wide = "moe_intermediate_size" if kind.endswith("_moe") else "intermediate_size"
        llama = kind == "llama"
        if experts and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
            raise ValueError(
                f"model {name}: layers without experts (mlp_only_layers, decoder_sparse_step) are not modelled; "
                "remove them from a copy of its config.json for an estimate."
            )
        return ModelShape(
            name=name,
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate=config[wide],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=kind in ("qwen2", "qwen2_moe") or bool(config.get("attention_bias", False)),
            output_bias=bool(config.get("attention_bias", False)),
            mlp_bias=llama and bool(config.get("mlp_bias", False)),
            qk_norm=kind in ("qwen3", "qwen3_moe"),
            experts=experts,
            experts_per_token=config["num_experts_per_tok"] if experts else 0,
            shared_intermediate=config.get("shared_expert_intermediate_size", 0) if experts else 0,
        )
    except KeyError as missing:
        raise ValueError(f"model {name}: its config.json has no {missing}; add it.") from None


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """The table ``models.yaml``: name -> published counts and config."""
    from omegaconf import OmegaConf

    table = OmegaConf.create(files("fgrpo_plugin").joinpath("models.yaml").read_text())
    return OmegaConf.to_container(table)  # type: ignore[return-value]


def find_model(model: str) -> ModelShape:
    """The shape of a known model, or of a local ``config.json``.

    Args:
        model: a name of ``models.yaml`` (with or without its owner, any case), a folder, or a ``config.json``.

    Raises:
        ValueError: it is neither; the message says how to describe it.
    """
    path = expanded(model)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise ValueError(f"model {model} is a folder that has no config.json; name one that has.")
    if path.is_file():
        try:
            config = json.loads(path.read_text())
        except ValueError:
            raise ValueError(f"model {model}: {path} is not JSON; give a Hugging Face config.json.") from None
        return shape_from_config(config, str(model))
    by_name = {
        known.lower(): known for name, entry in known_models().items() for known in (name, *entry.get("same", []))
    }
    by_name |= {lower.split("/")[1]: known for lower, known in by_name.items()}
    if known := by_name.get(model.lower()):
        return shape_from_config(_entry(known)["config"], known)
    near = dict.fromkeys(by_name[close] for close in get_close_matches(model.lower(), by_name, n=4))
    meant = f"nearest: {', '.join(near)}; " if near else ""
    raise ValueError(
        f"model {model} is neither known nor a local path; {meant}known, with others of their shape: "
        f"{', '.join(known_models())}; for another model give the path of its config.json (or of its folder)."
    )


def _entry(known: str) -> dict[str, Any]:
    return next(entry for name, entry in known_models().items() if known in (name, *entry.get("same", [])))
