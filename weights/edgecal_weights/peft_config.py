"""adapter_config.json: which modules a LoRA adapter changes, and by what factor.

PEFT's file has some forty keys. They fall into three groups, and every key must fall into one, because an
option that is passed over in silence gives wrong answers without a word:

- keys that are read here (rank, alpha, their patterns, the choice of modules);
- keys that had a meaning while training and have none afterwards (`HARMLESS`);
- everything else, which is refused by name unless it is empty (null, false, "", [], {}): the options of
  `REFUSED` with the reason, unknown ones because nobody can say what they change.

One trap deserves its own line: `init_lora_weights` sounds harmless, but PiSSA, CorDA, OLoRA, LoftQ and
LoRA-GA subtract what they put into the adapter from the base weights. Such an adapter is only right on that
changed base, unless it was saved converted to a plain LoRA, in which case PEFT writes `true` here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgecal_kernels.errors import shown

from .errors import AdapterError
from .files import read_object
from .lora_file import EMBEDDING, HEAD, LARGEST_RANK
from .safe_pattern import PatternBudget, SafePattern

_LARGEST_FILE = 4 << 20

HARMLESS = {
    "alpha_pattern": "read here",
    "auto_mapping": "names the Python class of the base",
    "base_model_name_or_path": "read here, for messages",
    "corda_config": "initialization; init_lora_weights decides",
    "ensure_weight_tying": "read here",
    "eva_config": "initialization",
    "exclude_modules": "read here",
    "inference_mode": "freezes the weights",
    "init_lora_weights": "read here",
    "layers_pattern": "read here",
    "layers_to_transform": "read here",
    "loftq_config": "initialization; init_lora_weights decides",
    "lora_alpha": "read here",
    "lora_dropout": "acts in training only",
    "lora_ga_config": "initialization; init_lora_weights decides",
    "megatron_core": "the name of a Python module",
    "peft_type": "read here",
    "peft_version": "who wrote the file",
    "qalora_group_size": "used by use_qalora only",
    "r": "read here",
    "rank_pattern": "read here",
    "revision": "of the base on the hub",
    "runtime_config": "where PEFT keeps tensors",
    "target_modules": "read here",
    "task_type": "read here",
    "use_rslora": "read here",
    "velora_config": "changes the backward pass only",
}

REFUSED = {
    "alora_invocation_tokens": "activated LoRA, which switches on in the middle of a text",
    "arrow_config": "Arrow routing between experts",
    "bias": "trained biases of the base",
    "fan_in_fan_out": "transposed base weights (GPT-2's Conv1D)",
    "kasa_config": "KaSA, which changes the base weights",
    "layer_replication": "a base with repeated layers",
    "lora_bias": "a bias in lora_B",
    "megatron_config": "layers of Megatron",
    "modules_to_save": "modules of the base that were trained in full",
    "monteclora_config": "Monte Carlo LoRA, which samples its weights",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained rows of the embedding",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA, which rescales the rows of the base weights",
    "use_qalora": "QALoRA, which pools the input",
}

_INITS_ON_PLAIN_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "true", "false")
_INITS_ON_CHANGED_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


class PeftConfig:
    """The meaning of one adapter_config.json. Raises AdapterError naming file and key.

    `rank(module)`, `scaling(module)` and `targets(module)` follow peft 0.21 for a module path such as
    "model.layers.0.self_attn.q_proj".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values = values = read_adapter_config(path)
        self._budget = PatternBudget()
        kind = values.get("peft_type", "LORA")
        if kind != "LORA":
            raise AdapterError(f"{path}: peft_type is {kind!r}; edgecal serves LORA")
        task = values.get("task_type")
        if task not in (None, "CAUSAL_LM"):
            raise AdapterError(f"{path}: task_type is {task!r}; edgecal serves CAUSAL_LM")
        self._refuse_unserved()
        self._rank = self._positive_rank("r", values.get("r"))
        self._alpha = self._number("lora_alpha", values.get("lora_alpha"))
        self._ranks = [
            (self._pattern("rank_pattern", key), self._positive_rank(f"rank_pattern[{key!r}]", rank))
            for key, rank in self._mapping("rank_pattern").items()
        ]
        self._alphas = [
            (self._pattern("alpha_pattern", key), self._number(f"alpha_pattern[{key!r}]", alpha))
            for key, alpha in self._mapping("alpha_pattern").items()
        ]
        self._targets = self._selection("target_modules")
        self._excluded = self._selection("exclude_modules")
        self._layers = self._layer_numbers()
        self._layer_patterns = [
            SafePattern(rf"(?:^|.*?\.){name}", f"{path}: layers_pattern", self._budget)
            for name in self._names("layers_pattern")
        ]

    @property
    def base_model_name(self) -> str | None:
        name = self._values.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def rank(self, module: str) -> int:
        return next((rank for pattern, rank in self._ranks if pattern.matches(module)), self._rank)

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA (rsLoRA, arXiv 2312.03732)."""
        alpha = next((alpha for pattern, alpha in self._alphas if pattern.matches(module)), self._alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self._values.get("use_rslora") else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT would put a LoRA on this module. Head and embedding are not among "all-linear"."""
        if self._excluded is not None and _selects(self._excluded, module):
            return False
        if self._targets is None or self._targets == "all-linear":
            return module not in (EMBEDDING, HEAD)
        if isinstance(self._targets, SafePattern):
            return self._targets.matches(module)
        if module in self._targets:  # a full path stands above layers_to_transform
            return True
        return _selects(self._targets, module) and (self._layers is None or self._layer(module) in self._layers)

    @property
    def ties_head(self) -> bool:
        """Whether on a base whose head is its embedding the head has the embedding's LoRA as well."""
        return bool(self._values.get("ensure_weight_tying")) and self.targets(EMBEDDING)

    def _layer(self, module: str) -> int | None:
        """The first number in the path that follows layers_pattern, or any two names."""
        parts = module.split(".")
        numbers = [i for i in range(len(parts) - 1) if parts[i].isdecimal() and len(parts[i]) < 10]
        before = {i: ".".join(parts[:i]) for i in numbers}
        if not self._layer_patterns:
            return next((int(parts[i]) for i in numbers if "." in before[i]), None)
        for pattern in self._layer_patterns:
            for i in numbers:
                if pattern.matches(before[i]):
                    return int(parts[i])
        return None

    def _refuse_unserved(self) -> None:
        for key, value in self._values.items():
            empty = value is None or value is False or (value != 0 and not value)
            if empty or key in HARMLESS or (key == "bias" and value == "none"):
                continue
            found = shown(value)
            if key in REFUSED:
                raise AdapterError(f"{self.path}: {key!r} is {found}: {REFUSED[key]} is not supported")
            raise AdapterError(
                f"{self.path}: unknown key {key!r} = {found}; it may change what the adapter does, and "
                "edgecal does not know how"
            )
        if not isinstance(self._values.get("use_rslora"), (bool, type(None))):
            raise AdapterError(f"{self.path}: 'use_rslora' is {shown(self._values['use_rslora'])}, expected a bool")
        init = self._values.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(_INITS_ON_CHANGED_BASE):
            raise AdapterError(
                f"{self.path}: 'init_lora_weights' is {init!r}, which changed the base weights before "
                "training; save the adapter converted to a plain LoRA (PEFT: save_pretrained with "
                "path_initial_model_for_weight_conversion)"
            )
        if (init.lower() if isinstance(init, str) else init) not in _INITS_ON_PLAIN_BASE:
            raise AdapterError(f"{self.path}: 'init_lora_weights' is {shown(init)}, which edgecal does not know")

    def _positive_rank(self, key: str, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= LARGEST_RANK:
            raise AdapterError(
                f"{self.path}: {key} is {shown(value)}, expected a whole number from 1 to {LARGEST_RANK}"
            )
        return value

    def _number(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 < abs(value) <= 1e9:
            raise AdapterError(f"{self.path}: {key} is {shown(value)}, expected a number other than 0")
        return float(value)

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self._values.get(key) or {}
        if not isinstance(value, dict):
            raise AdapterError(f"{self.path}: {key!r} is {shown(value)}, expected an object")
        return value

    def _names(self, key: str) -> list[str]:
        value = self._values.get(key) or []
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise AdapterError(f"{self.path}: {key!r} is {shown(value)}, expected a name or a list of names")
        return names

    def _selection(self, key: str) -> SafePattern | frozenset[str] | str | None:
        value = self._values.get(key)
        if not value:
            return None
        if isinstance(value, str):
            if key == "target_modules" and value.lower() == "all-linear":
                return "all-linear"
            return SafePattern(value, f"{self.path}: {key}", self._budget)
        return frozenset(self._names(key))

    def _pattern(self, key: str, pattern: str) -> SafePattern:
        return SafePattern(pattern, f"{self.path}: {key}", self._budget, suffix=True)

    def _layer_numbers(self) -> frozenset[int] | None:
        value = self._values.get("layers_to_transform")
        if value is None or value == []:
            return None
        numbers = value if isinstance(value, list) else [value]
        if not all(type(number) is int for number in numbers):
            raise AdapterError(f"{self.path}: 'layers_to_transform' is {shown(value)}, expected layer numbers")
        return frozenset(numbers)


def _selects(selection: SafePattern | Iterable[str], module: str) -> bool:
    if isinstance(selection, SafePattern):
        return selection.matches(module)
    parts = module.split(".")
    names: Iterable[str] = (".".join(parts[i:]) for i in range(len(parts)))
    return any(name in selection for name in names)


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The JSON object in an adapter_config.json; AdapterError names the file."""
    return read_object(path, _LARGEST_FILE, error=AdapterError)
