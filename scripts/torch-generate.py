#!/usr/bin/env python3
"""SDAR's own way of generating (blocks of four, a step for each token, a forward more that fills the cache) in PyTorch, one sequence, to hold
Choir's speed against: scripts/torch-generate.py CHECKPOINT [float32|bfloat16] [TOKENS]. Needs torch, transformers and safetensors. Weights
may be random: `scripts/random-model.sh`.
"""
import glob, json, sys, time

import torch
from safetensors.torch import load_file
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

folder, precision = sys.argv[1], getattr(torch, sys.argv[2] if len(sys.argv) > 2 else "float32")
tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 32
config = json.load(open(f"{folder}/config.json"))
block, mask = config["block_size"], config["mask_token_id"]
torch.manual_seed(1)
with torch.device("meta"):
    shape = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype", "block_size", "mask_token_id")}
    model = Qwen3ForCausalLM(Qwen3Config(**shape, attn_implementation="sdpa"))
model = model.to_empty(device="cpu").to(precision).eval()
weights = {}
for shard in sorted(glob.glob(f"{folder}/*.safetensors")):
    weights.update(load_file(shard))
model.load_state_dict(weights, strict=True)
del weights
# What no checkpoint holds.
model.model.rotary_emb = type(model.model.rotary_emb)(model.config)


@torch.inference_mode()
def forward(ids, at, cache, keep):
    """Logits of one block, all of which sees all of itself and of the cache."""
    seen = torch.zeros(1, 1, ids.shape[1], at + ids.shape[1], dtype=precision)
    place = torch.arange(at, at + ids.shape[1])[None]
    logits = model(ids, attention_mask=seen, position_ids=place, past_key_values=cache, use_cache=True).logits
    if not keep:
        cache.crop(-ids.shape[1])
    return logits


prompt = torch.arange(1000, 1032)[None]
cache = DynamicCache()
for at in range(0, prompt.shape[1], block):
    forward(prompt[:, at : at + block], at, cache, True)
begun, at = time.time(), prompt.shape[1]
for _ in range(tokens // block):
    ids = torch.full((1, block), mask)
    for _ in range(block):
        drawn = torch.softmax(forward(ids, at, cache, False).float(), -1)
        best = torch.multinomial(drawn[0], 1).T
        sure = drawn[0].gather(1, best.T).T.masked_fill(ids != mask, -1)
        chosen = sure.argmax()
        ids[0, chosen] = best[0, chosen]
    forward(ids, at, cache, True)
    at += block
took = time.time() - begun
print(f"PyTorch {torch.__version__}, {precision}, {torch.get_num_threads()} threads: {tokens} tokens in {took:.1f} s, {took / tokens * 1e3:.0f} ms a token")
