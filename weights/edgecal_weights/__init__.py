"""Files in, arrays out, and back: safetensors, GGUF, packed models, PEFT adapters, calibrations, the hub.

`opening.open_checkpoint` opens any kind of model. Nothing here knows the forward pass.
"""
