"""The engines of the comparison, one module each. Each is imported by the process that runs it and by no other."""

from __future__ import annotations

from importlib import import_module

from .worker import Worker

MODULES = {
    "edgecal": ("edgecal", "Edgecal"),
    "llama.cpp": ("llama_cpp", "LlamaCpp"),
    "ik_llama.cpp": ("ik_llama_cpp", "IkLlamaCpp"),
    "openvino": ("openvino", "OpenVino"),
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "transformers": ("transformers", "Transformers"),
    "mistral.rs": ("mistral_rs", "MistralRs"),
}


def engine(name: str) -> type[Worker]:
    module, class_name = MODULES[name]
    found: type[Worker] = getattr(import_module(f"{__name__}.{module}"), class_name)
    return found
