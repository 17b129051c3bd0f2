"""From logits to ids: prefill and decode, samplers, drafts, batches, and the keys and values kept between requests."""
