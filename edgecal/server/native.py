"""The routes of llama.cpp's server beside OpenAI's: state, tokens, templates, adapters; and loading at run time."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from .. import __version__
from .asked import messages
from .context import Context
from .errors import HttpError

_MOST_IDS = 1 << 20


async def health(http: HttpRequest) -> Response:
    context: Context = http.app.state.context
    if context.ready:
        return JSONResponse({"status": "ok"})
    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    return JSONResponse({"error": error}, 503)


async def models(http: HttpRequest) -> Response:
    served = Context.of(http).served
    facts = {"object": "model", "created": served.started, "owned_by": "edgecal"}
    data = []
    for name in served.model_names:
        kind = "base" if name == served.name else "recipe" if name in served.recipes else "adapter"
        recipe = served.recipes.get(name)
        about: dict[str, Any] = {"kind": kind}
        if kind == "base":
            config = served.engine.model.config
            about |= {"n_ctx": config.max_position_embeddings, "n_vocab": config.vocab_size}
        elif recipe is not None:
            about |= {"method": recipe.method, "adapters": list(recipe.adapter_names)}
        data.append({"id": name, **facts, "meta": about})
    return JSONResponse({"object": "list", "data": data})


async def model(http: HttpRequest) -> Response:
    served, name = Context.of(http).served, http.path_params["name"]
    served.recipe_named(name)
    return JSONResponse({"id": name, "object": "model", "created": served.started, "owned_by": "edgecal"})


async def metrics(http: HttpRequest) -> Response:
    return Response(Context.of(http).metrics.text(), media_type="text/plain; version=0.0.4")


async def props(http: HttpRequest) -> Response:
    context = Context.of(http)
    served, config = context.served, context.served.engine.model.config
    return JSONResponse(
        {
            "default_generation_settings": {
                "n_ctx": config.max_position_embeddings,
                "params": {"n_predict": context.options.max_tokens, "temperature": 0.0},
            },
            "total_slots": served.running.batch_size,
            "model_alias": served.name,
            "chat_templates": served.engine.tokenizer.template_names,
            "build_info": f"edgecal {__version__}",
            "threads": {"decode": served.engine.threads.decode, "prefill": served.engine.threads.prefill},
            "cache_dtype": served.engine.cache_dtype,
            "calibrations": list(served.calibrations),
        }
    )


async def slots(http: HttpRequest) -> Response:
    """The places of the batch. What is written in them is nobody's business but the client's."""
    served = Context.of(http).served
    n_ctx = served.engine.model.config.max_position_embeddings
    running = served.running.running
    found = []
    for place in range(served.running.batch_size):
        slot: dict[str, Any] = {"id": place, "n_ctx": n_ctx, "is_processing": place < len(running)}
        if place < len(running):
            request = running[place].request
            slot |= {"method": request.method, "n_prompt_tokens": len(request.ids)}
        found.append(slot)
    return JSONResponse(found)


async def tokenize(http: HttpRequest) -> Response:
    context = Context.of(http)
    found, tokenizer = await context.fields(http), context.served.engine.tokenizer
    content, special, pieces = found.text("content"), found.flag("add_special"), found.flag("with_pieces")
    found.only("parse_special", (True,), "special tokens that are written out are always read as such")
    found.finish()
    if content is None:
        raise HttpError(400, "content is missing: the text to tokenize")
    ids = await asyncio.to_thread(tokenizer.encode, content, add_special_tokens=special)
    if not pieces:
        return JSONResponse({"tokens": ids})
    named = [{"id": i, "piece": tokenizer.decode([i], skip_special_tokens=False)} for i in ids]
    return JSONResponse({"tokens": named})


async def detokenize(http: HttpRequest) -> Response:
    context = Context.of(http)
    found = await context.fields(http)
    ids = found.any("tokens")
    found.finish()
    limit = context.served.engine.model.config.vocab_size
    if (
        not isinstance(ids, list)
        or len(ids) > _MOST_IDS
        or not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < limit for i in ids)
    ):
        raise HttpError(400, f"tokens must be a list of ids from 0 to {limit - 1}")
    return JSONResponse({"content": context.served.engine.tokenizer.decode(ids, skip_special_tokens=False)})


async def apply_template(http: HttpRequest) -> Response:
    context = Context.of(http)
    found = await context.fields(http)
    conversation = messages(found.any("messages"))
    found.finish()
    return JSONResponse({"prompt": context.served.engine.tokenizer.apply_chat_template(conversation)})


async def lora_adapters(http: HttpRequest) -> Response:
    """GET: adapters with their numbers and scales. POST [{id, scale}]: those of requests that ask for nothing else."""
    context = Context.of(http)
    served = context.served
    if http.method == "POST":
        value = await context.json(http)
        scales = served.scales_of(value)
        await served.running.call(served.engine.compile, served.recipe_of_scales(value))
        served.scales = scales
        return JSONResponse({"success": True})
    names = served.adapter_names
    return JSONResponse(
        [{"id": i, "name": name, "path": name, "scale": served.scales.get(name, 0.0)} for i, name in enumerate(names)]
    )


async def load(http: HttpRequest) -> Response:
    """An adapter, by vLLM's names of the fields, or a calibration, out of the allowed folder."""
    context = Context.of(http)
    found, served = await context.fields(http), context.served
    is_adapter = http.url.path.endswith("lora_adapter")
    kind = "lora" if is_adapter else "calibration"
    name, path = found.text(f"{kind}_name"), found.text(f"{kind}_path")
    found.finish()
    if not name or not path:
        raise HttpError(400, f"{kind}_name and {kind}_path are needed")
    await (served.load_adapter(name, path) if is_adapter else served.load_calibration(name, path))
    return JSONResponse({"success": True, "models": served.model_names, "calibrations": list(served.calibrations)})


async def unload(http: HttpRequest) -> Response:
    context = Context.of(http)
    found, served = await context.fields(http), context.served
    is_adapter = http.url.path.endswith("lora_adapter")
    name = found.text("lora_name" if is_adapter else "calibration_name")
    found.finish()
    if not name:
        raise HttpError(400, "the name of what is to be unloaded is missing")
    if is_adapter:
        await served.unload_adapter(name)
    else:
        served.unload_calibration(name)
    return JSONResponse({"success": True, "models": served.model_names, "calibrations": list(served.calibrations)})
