"""Conversations as transformers writes them with a published tokenizer and its own template, for `tests/fixtures/chat`.

Usage: chat_cases.py FOLDER_WITH_TOKENIZER OUT.json
"""

import json
import sys

from transformers import PreTrainedTokenizerFast

folder, out = sys.argv[1:]
config = json.load(open(f"{folder}/tokenizer_config.json"))
special = {name: config.get(name) for name in ["bos_token", "eos_token"] if config.get(name)}
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", **special)


def turns(*contents):
    return [{"role": ["user", "assistant"][at % 2], "content": text} for at, text in enumerate(contents)]


conversations = [
    turns("hello there"),
    [{"role": "system", "content": "answer shortly"}, *turns("what is two and two?")],
    turns("hello", "hello, how are you?", "I am well.\n\n  And ünïcode: 你好 🙂\n"),
    [
        {"role": "system", "content": " you are a fox "},
        *turns("jump", "<think>\nover the dog\n</think>\n\nI jump.", "again, it's <think>", "no", "why?"),
    ],
]
cases = []
for messages in conversations:
    for thinking in [None, True, False]:
        options = {} if thinking is None else {"enable_thinking": thinking}
        ids = tokenizer.apply_chat_template(
            messages, chat_template=config["chat_template"], add_generation_prompt=True, tokenize=True, return_dict=False, **options
        )
        cases.append(
            {
                "template": config["chat_template"],
                "bos_token": special.get("bos_token", ""),
                "eos_token": special.get("eos_token", ""),
                "messages": messages,
                "enable_thinking": thinking,
                "ids": list(ids),
            }
        )
json.dump(cases, open(out, "w"), ensure_ascii=False)
print(f"{len(cases)} conversations")
